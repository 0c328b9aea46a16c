"""What is fuzzed: each target takes any octets and raises where ours and an oracle disagree.

A target decides everything by the octets that it is given, so that a finding is a file. The oracles are other
people's parsers of the same thing; where they are known to differ, the difference is named here, and nothing
else passes. `tests/property/fuzz` gives each of them a few seconds in every test run; `./dev fuzz` as long as
one likes.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import http2time
from urllib.parse import urlsplit

import h11
import httpx
import standardwebhooks

from pggit_reactor.core.egress import EgressRules
from pggit_reactor.core.retry_after import RETRY_AFTER_SECONDS_MAX, parse_retry_after
from pggit_reactor.core.signing import sign, verify
from pggit_reactor.core.special_networks import embedded_ipv4
from pggit_reactor.core.url_policy import Target, judge_addresses, parse_target
from pggit_reactor.delivery.answers import BODY_OCTETS_MAX, AnswerReader
from pggit_reactor.delivery.failures import AttemptError
from pggit_reactor.errors import UrlRefusedError, VerificationError

Fuzzed = Callable[[bytes], None]


KEPT_OCTETS_MAX = 1024
MESSAGE_CHARS_MAX = 1000


# ---- answers ----------------------------------------------------------------------------------------------


def answer(octets: bytes) -> None:
    """The answer parser: beside h11, and beside itself with the octets cut apart."""
    if len(octets) < 2:
        return
    step, octets = octets[0] % 64 + 1, octets[1:]
    whole = read_answer([octets], KEPT_OCTETS_MAX)
    cut = read_answer([octets[at : at + step] for at in range(0, len(octets), step)], KEPT_OCTETS_MAX)
    # One read sees beyond the answer's end and the other may not, so `reusable` may differ; the answer may not.
    assert (whole is None) == (cut is None), "cutting the octets apart changed the verdict"
    if whole is None or cut is None:
        return
    assert (whole.status, whole.fields, whole.body()) == (cut.status, cut.fields, cut.body())
    assert len(whole.body()) <= KEPT_OCTETS_MAX
    assert whole.excerpt().isprintable()
    if whole.reusable and len(octets) <= BODY_OCTETS_MAX:
        status, body = read_answer_with_h11(octets) or (None, b"")
        assert (status, body[:KEPT_OCTETS_MAX]) == (whole.status, whole.body()), "h11 reads another answer"


def read_answer(pieces: list[bytes], keep_octets_max: int) -> AnswerReader | None:
    """Return our parser with the answer in it, or None where it is none."""
    reader = AnswerReader(keep_octets_max=keep_octets_max)
    try:
        for piece in pieces:
            if not reader.complete:
                reader.feed(piece)
    except AttemptError:
        assert reader.status is None, "what has a status never fails"
        return None
    reader.feed_end()
    return reader


def read_answer_with_h11(octets: bytes) -> tuple[int, bytes] | None:
    """Return status and body as h11 reads them, or None where it reads no answer."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="POST", target="/", headers=[("Host", "a"), ("Content-Length", "0")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(octets)
    connection.receive_data(b"")
    status, body = 0, b""
    try:
        while not isinstance(event := connection.next_event(), h11.EndOfMessage):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
                return None
    except h11.RemoteProtocolError:
        return None
    return status, body


# ---- URL policy -------------------------------------------------------------------------------------------

STRICT = EgressRules()
FREE = EgressRules.parse(unsafe_allow="0.0.0.0/0:*,[::/0]:*")
NAMED = parse_target("https://receiver.example.com/", STRICT)

REFUSED_THOUGH_GLOBAL = tuple(
    ipaddress.ip_network(block)
    for block in (
        # Registered, and no receiver's, though Python calls them global (some of them, by version).
        *("168.63.129.16/32", "192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
        *("192.175.48.0/24", "224.0.0.0/4", "2001::/23", "2002::/16", "2620:4f:8000::/48", "3ffe::/16"),
        "3fff::/20",
    )
)
GLOBAL_UNICAST = ipaddress.ip_network("2000::/3")


def url(octets: bytes) -> None:
    """The reading of URLs: beside urllib and httpx, strict and with everything free."""
    text = octets.decode("utf-8", "surrogateescape")
    for rules in (STRICT, FREE):
        try:
            target = parse_target(text, rules)
        except UrlRefusedError as refused:
            complaint = str(refused)
        else:
            _check_reading(text, target, rules)
            continue
        assert len(complaint) < MESSAGE_CHARS_MAX, "a message without bounds"


def _check_reading(text: str, target: Target, rules: EgressRules) -> None:
    split = urlsplit(text)
    assert split.scheme == "https"
    assert (split.username, split.password, split.fragment) == (None, None, "")
    assert (split.port or 443) == target.port
    with suppress(httpx.InvalidURL):
        # Not all of what is a name for UTS 46 is one for httpx; what it reads, it reads alike.
        assert httpx.URL(text).raw_host.decode("ascii").lower() == target.host
    again = parse_target(target.origin + target.path_and_query.reveal(), rules)
    assert again == target, "the canonical form reads as something else"
    if rules is STRICT and target.literal is not None:
        assert _is_plain(target.literal)


def address(octets: bytes) -> None:
    """The judgement of addresses: beside `ipaddress`."""
    if len(octets) not in {4, 16}:
        return
    given = ipaddress.ip_address(octets)
    try:
        judged = judge_addresses(NAMED, [given], STRICT)
    except UrlRefusedError:
        assert not _is_plain(given) or _is_known_difference(given), (
            f"{given} is refused, Python calls it global"
        )
        return
    assert judged == (given,)
    assert _is_plain(given), f"{given} is accepted, Python calls it special"
    assert not embedded_ipv4(given), f"{given} is accepted, with an IPv4 address in it"


def _is_plain(given: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return given.is_global and not given.is_multicast and not given.is_reserved


def _is_known_difference(given: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if any(given in block for block in REFUSED_THOUGH_GLOBAL):
        return True
    # Beyond 2000::/3 Python calls much global that nobody was ever given; ISATAP it does not know.
    return given.version == 6 and (given not in GLOBAL_UNICAST or int(given) >> 32 & 0xFDFF_FFFF == 0x5EFE)


# ---- verifier ---------------------------------------------------------------------------------------------

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()
NOW = 1_700_000_000
MESSAGE_ID = "8f8f1e0c-0000-8000-8000-000000000001"
BODY = b'{"alert": 1}'
_RIGHT = sign(BODY, id=MESSAGE_ID, timestamp=NOW, secrets=[SECRET])
_NAMES = tuple(_RIGHT)
_END = b"\x00"
_OTHER_TOLERANCE = 300


def verifier(octets: bytes) -> None:
    """`verify`: whatever it accepts, HMAC and the package standardwebhooks vouch for.

    The octets are a body and six headers, each ended by NUL: empty is absent, ``=`` is the right one.
    """
    parts = octets.split(_END, len(_NAMES))
    parts += [b""] * (len(_NAMES) + 1 - len(parts))
    body = BODY if parts[0] == b"=" else parts[0]
    headers = {
        name: _RIGHT[name] if part == b"=" else part.decode("latin-1")
        for name, part in zip(_NAMES, parts[1:], strict=True)
        if part
    }
    try:
        verify(body, headers, SECRET, now=NOW)
    except VerificationError:
        return
    standard = all(name in headers for name in _NAMES[:3]) and _standard_vouches(headers, body)
    pggit = all(name in headers for name in _NAMES[3:]) and _pggit_vouches(headers, body)
    assert standard or pggit, "accepted, and no other implementation agrees"


def _standard_vouches(headers: dict[str, str], body: bytes) -> bool:
    id_, timestamp, signatures = (headers[name].strip(" \t") for name in _NAMES[:3])
    assert abs(NOW - int(timestamp)) <= _OTHER_TOLERANCE
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return _hmac_of(id_, timestamp, body, standard=True) in signatures.split(" ")
    moment = datetime.fromtimestamp(int(timestamp), UTC)
    return standardwebhooks.Webhook(SECRET).sign(id_, moment, text) in signatures.split(" ")


def _pggit_vouches(headers: dict[str, str], body: bytes) -> bool:
    id_, timestamp, signatures = (headers[name].strip(" \t") for name in _NAMES[3:])
    assert abs(NOW - datetime.fromisoformat(timestamp).timestamp()) <= _OTHER_TOLERANCE
    return _hmac_of(id_, timestamp, body, standard=False) in signatures.split(" ")


def _hmac_of(id_: str, timestamp: str, body: bytes, *, standard: bool) -> str:
    key = base64.b64decode(SECRET.removeprefix("whsec_"))
    digest = hmac.new(key, f"{id_}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode() if standard else "sha256=" + digest.hex()


# ---- Retry-After ------------------------------------------------------------------------------------------


def retry_after(octets: bytes) -> None:
    """Retry-After: beside the date parsers of `email.utils` and `http.cookiejar`."""
    text = octets.decode("latin-1")
    wait = parse_retry_after(text, now=0.0)
    stripped = text.strip(" \t")
    if wait is None:
        assert not (stripped.isascii() and stripped.isdigit()), "a number of seconds was not understood"
        return
    assert 0 <= wait <= RETRY_AFTER_SECONDS_MAX
    if stripped.isdigit():
        assert wait == min(int(stripped[-400:]) if len(stripped) < 400 else 3600, RETRY_AFTER_SECONDS_MAX)
        return
    moment = _moment_of(stripped)
    if moment is None:
        return
    assert wait == min(max(moment, 0.0), RETRY_AFTER_SECONDS_MAX)
    # The same a minute before that date, where the cap hides nothing.
    assert parse_retry_after(text, now=moment - 60) == 60


def _moment_of(text: str) -> float | None:
    """Return what both others take *text* for; None where they are known to differ from us.

    Two digits of a year they count from 1969 or from today, and a leap second (:60) they refuse. The years before
    1970 and asctime's form are `strptime`'s to judge. A wrong name of the day all forgive.
    """
    if "-" in text or ":60" in text:
        return None
    form = "%d %b %Y %H:%M:%S GMT" if text.endswith("GMT") else "%b %d %H:%M:%S %Y"
    moment = datetime.strptime(text.partition(" ")[2], form).replace(tzinfo=UTC).timestamp()
    if moment >= 0 and text.endswith("GMT"):
        assert http2time(text) == parsedate_to_datetime(text).timestamp() == moment
    return moment


TARGETS: dict[str, Fuzzed] = {
    "answer": answer,
    "url": url,
    "address": address,
    "verifier": verifier,
    "retry_after": retry_after,
}
