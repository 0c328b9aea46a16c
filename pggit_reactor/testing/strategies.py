"""Hypothesis strategies for the values of `pggit_reactor.core`.

Each value of core/model.py has one, and so have the things that the outside world sends: statuses,
Retry-After fields, URLs, hosts, addresses and the ways of spelling them.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from hypothesis import strategies as st

from pggit_reactor.core.backoff import Backoff
from pggit_reactor.core.delivery_uid import delivery_uid
from pggit_reactor.core.egress import EgressEntry, EgressRules
from pggit_reactor.core.model import (
    Answer,
    AttemptFailure,
    AttemptResult,
    ClaimedDelivery,
    DeliveryId,
    FailureKind,
    LeaseToken,
    Phases,
    SignatureScope,
    State,
    Webhook,
    WebhookId,
    WebhookState,
)
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret
from pggit_reactor.core.special_networks import (
    GLOBAL_UNICAST_IPV6,
    SPECIAL_IPV4,
    SPECIAL_IPV6,
    Address,
    Network,
    special_kind,
)
from pggit_reactor.core.status_policy import Meaning, StatusPolicy

_LOWER_AND_DIGITS: Final = string.ascii_lowercase + string.digits
_COUNT_MAX: Final = 2**31 - 1
_SECONDS_MAX: Final = 1e6
_TOP_LEVEL_DOMAINS: Final = ("com", "net", "org", "io", "dev", "de", "museum", "xn--p1ai")


def bigints() -> st.SearchStrategy[int]:
    """Any PostgreSQL bigint: every id and salt may be one, negative ones too."""
    return st.integers(-(2**63), 2**63 - 1)


def draws() -> st.SearchStrategy[float]:
    """A draw of the dice, uniform in [0, 1)."""
    return st.floats(0, 1, exclude_max=True, allow_nan=False)


def uids() -> st.SearchStrategy[str]:
    """A delivery's uid."""
    return st.builds(delivery_uid, bigints(), bigints())


def bodies() -> st.SearchStrategy[bytes]:
    """The octets of a body; jsonb in truth, but nobody on the way may depend on that."""
    return st.binary(max_size=2000)


def seconds(*, maximum: float = _SECONDS_MAX) -> st.SearchStrategy[float]:
    """A duration, in seconds."""
    return st.floats(0, maximum, allow_nan=False)


# Outcomes


def status_policies() -> st.SearchStrategy[StatusPolicy]:
    """A webhook's own table of statuses."""
    names = st.integers(300, 599).map(str) | st.sampled_from(("3xx", "4xx", "5xx", "410", "429", "503"))
    return st.dictionaries(names, st.sampled_from(Meaning), max_size=8).map(StatusPolicy.parse)


def statuses() -> st.SearchStrategy[int]:
    """A status as it may be sent, with or without a meaning."""
    return st.integers(0, 999)


def http_dates(*, years: tuple[int, int] = (1971, 2100)) -> st.SearchStrategy[tuple[str, datetime]]:
    """An HTTP date in one of its three formats, and the moment that it means to a reader within 50 years."""
    first, last = (datetime(year, 1, 1, tzinfo=UTC).replace(tzinfo=None) for year in years)
    forms: tuple[Callable[[datetime], str], ...] = (_imf_date, _rfc850_date, _asctime_date)
    return st.builds(
        lambda moment, form: (form(moment), moment.replace(microsecond=0, tzinfo=UTC)),
        st.datetimes(first, last),
        st.sampled_from(forms),
    )


def retry_after_fields() -> st.SearchStrategy[str | None]:
    """A Retry-After field: absent, right in each form, or nonsense."""
    return st.one_of(
        st.none(),
        st.integers(0, 100_000).map(str),
        http_dates().map(lambda pair: pair[0]),
        st.text(max_size=64),
    )


def answers() -> st.SearchStrategy[Answer]:
    """What a receiver answered."""
    return st.builds(
        Answer, status=statuses(), retry_after=retry_after_fields(), excerpt=st.text(max_size=100)
    )


def attempt_failures() -> st.SearchStrategy[AttemptFailure]:
    """Why an attempt has no answer."""
    return st.builds(AttemptFailure, kind=st.sampled_from(FailureKind), detail=st.text(max_size=100))


def outcomes() -> st.SearchStrategy[Answer | AttemptFailure]:
    """An answer, or none."""
    return st.one_of(answers(), attempt_failures())


@st.composite
def phases(draw: st.DrawFn) -> Phases:
    """The ends of the phases of an attempt, in order, up to the one that it reached."""
    ends = sorted(draw(st.lists(seconds(maximum=20), max_size=5)))
    names = ("resolved", "connected", "secured", "sent", "answered")
    return Phases(**dict(zip(names, ends, strict=False)))


def attempt_results() -> st.SearchStrategy[AttemptResult]:
    """One attempt: its outcome and how long it took."""
    return st.builds(
        AttemptResult,
        outcome=outcomes(),
        elapsed_seconds=seconds(maximum=20),
        phases=phases(),
        address=st.one_of(st.none(), public_addresses().map(str)),
        reused=st.booleans(),
        resent=st.booleans(),
    )


def backoffs() -> st.SearchStrategy[Backoff]:
    """Backoff settings, sensible or not."""
    amounts = st.floats(1e-3, 1e6, allow_nan=False)
    return st.builds(Backoff, base_seconds=amounts, cap_seconds=amounts)


# Signing and headers


def signing_secrets() -> st.SearchStrategy[str]:
    """A signing secret that can sign: of the form ``whsec_``, or plain text of 24 octets or more."""
    plain = st.text(st.characters(codec="utf-8"), min_size=24, max_size=64)
    return st.one_of(
        st.binary(min_size=24, max_size=64).map(new_secret),
        plain.filter(lambda text: not text.startswith("whsec_")),
    )


def message_ids() -> st.SearchStrategy[str]:
    """An id that may be signed."""
    visible = "".join(character for character in map(chr, range(0x21, 0x7F)) if character != ".")
    return st.one_of(uids(), st.text(visible, min_size=1, max_size=64))


def timestamps() -> st.SearchStrategy[int]:
    """Unix seconds that may be signed: from 1970 to 9999."""
    return st.integers(0, 253_402_300_799)


def extra_headers() -> st.SearchStrategy[dict[str, str]]:
    """Headers that a row may add: at most 32, and not two of one name."""
    names = st.text(_LOWER_AND_DIGITS, min_size=1, max_size=20).map("X-Extra-{}".format)
    latin = st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_categories=["Cc"])
    values = st.text(latin, max_size=60).map(lambda text: text.strip(" \xa0"))
    return st.dictionaries(names, values, max_size=32)


# Values that the worker handles


def webhooks() -> st.SearchStrategy[Webhook]:
    """A registered receiver, opened for sending."""
    urls = st.shared(public_urls(), key="webhook-url")
    return st.builds(
        Webhook,
        webhook_id=bigints().map(WebhookId),
        name=st.text(string.ascii_letters, min_size=1, max_size=40),
        revision=st.integers(0, _COUNT_MAX),
        state=st.sampled_from(WebhookState),
        url=urls.map(Secret[str]),
        url_origin=urls.map(lambda url: "/".join(url.split("/")[:3])),
        secrets=st.lists(signing_secrets().map(Secret[str]), min_size=1, max_size=2).map(tuple),
        secrets_change_in_seconds=st.none() | st.floats(0, 1e9),
        concurrency=st.integers(1, 256),
        attempt_timeout_seconds=st.floats(0.1, 20, allow_nan=False),
        max_attempts=st.one_of(st.none(), st.integers(1, 100)),
        give_up_after_seconds=seconds(),
        headers=extra_headers().map(lambda headers: tuple(headers.items())),
        signature_scope=st.sampled_from(SignatureScope),
        max_body_bytes=st.integers(1, 2**20),
        status_policy=status_policies(),
    )


def claimed_deliveries() -> st.SearchStrategy[ClaimedDelivery]:
    """A row under a lease, as a claim returned it."""
    return st.tuples(bigints(), bigints(), bodies()).flatmap(lambda parts: _claimed(*parts))


def _claimed(delivery_id: int, uid_salt: int, body: bytes) -> st.SearchStrategy[ClaimedDelivery]:
    counts = st.integers(0, 1000)
    return st.builds(
        ClaimedDelivery,
        delivery_id=st.just(DeliveryId(delivery_id)),
        uid=st.just(delivery_uid(delivery_id, uid_salt)),
        webhook_id=bigints().map(WebhookId),
        webhook_revision=st.integers(0, _COUNT_MAX),
        lease_token=bigints().map(LeaseToken),
        state=st.sampled_from([State.PENDING, State.RETRYING]),
        body=st.sampled_from([body, None]),
        body_bytes=st.just(len(body)),
        retry_count=counts,
        max_retries=st.integers(1, 1000),
        attempt_count=counts,
        crash_count=st.integers(0, 2),
        age_seconds=seconds(),
        waited_seconds=seconds(),
        expired=st.booleans(),
        event_type=st.one_of(st.none(), st.text(string.ascii_lowercase, max_size=20)),
    )


# Addresses, hosts and URLs


def public_addresses() -> st.SearchStrategy[Address]:
    """A plain global unicast address."""
    v4 = st.ip_addresses(v=4)
    v6 = st.ip_addresses(network=GLOBAL_UNICAST_IPV6)
    return st.one_of(v4, v6).filter(lambda address: special_kind(address) is None)


def special_addresses() -> st.SearchStrategy[Address]:
    """An address of a special network, each network as likely as another."""
    blocks: list[Network] = [block for block, _ in SPECIAL_IPV4]
    blocks += [block for block, _ in SPECIAL_IPV6]
    return st.sampled_from(blocks).flatmap(addresses_in)


def addresses_in(network: Network) -> st.SearchStrategy[Address]:
    """An address of *network*, its two ends more often than others."""
    ends = st.sampled_from([network.network_address, network.broadcast_address])
    return st.one_of(ends, st.ip_addresses(network=network))


def embeddings(inner: IPv4Address) -> st.SearchStrategy[IPv6Address]:
    """An IPv6 address of which some gateway makes *inner*."""
    bits = int(inner)
    prefix = st.ip_addresses(network=GLOBAL_UNICAST_IPV6).map(lambda address: int(address) >> 64 << 64)
    rest = st.integers(0, 2**32 - 1)
    return st.one_of(
        st.sampled_from(["::", "::ffff:0:0", "::ffff:0:0:0", "64:ff9b::", "64:ff9b:1::"]).map(
            lambda base: int(IPv6Address(base)) | bits
        ),
        # NAT64 with a prefix of 48 bits, 6to4, both ends of Teredo, ISATAP with and without the universal
        # bit.
        st.just(int(IPv6Address("64:ff9b:1::")) | bits >> 16 << 64 | (bits & 0xFFFF) << 40),
        rest.map(lambda low: 0x2002 << 112 | bits << 80 | low),
        rest.map(lambda client: 0x2001 << 112 | bits << 64 | client),
        rest.map(lambda server: 0x2001 << 112 | server << 64 | bits ^ 0xFFFF_FFFF),
        prefix.map(lambda top: top | 0x0000_5EFE << 32 | bits),
        prefix.map(lambda top: top | 0x0200_5EFE << 32 | bits),
    ).map(IPv6Address)


@st.composite
def number_spellings(draw: st.DrawFn, address: IPv4Address) -> str:
    """A spelling of *address* that ``inet_aton`` understands and that is not the canonical one."""
    octets = address.packed
    part_count = draw(st.integers(1, 4))
    # The last part holds all octets that have no part of their own.
    parts = [*octets[: part_count - 1], int.from_bytes(octets[part_count - 1 :], "big")]
    spell = st.sampled_from(["{}", "0{:o}", "0x{:x}", "0X{:X}", "00{:o}", "0x0{:x}"])
    text = ".".join(draw(spell).format(part) for part in parts)
    return draw(st.sampled_from([f"{address}.", _full_width(str(address))])) if text == str(address) else text


@st.composite
def ipv6_spellings(draw: st.DrawFn, address: IPv6Address) -> str:
    """A spelling of *address*, in brackets: canonical, in full, in upper case, with its end dotted."""
    dotted = f"{address.exploded[:30]}{IPv4Address(int(address) & 0xFFFF_FFFF)}"
    forms = [str(address), address.exploded, str(address).upper(), address.exploded.upper(), dotted]
    return f"[{draw(st.sampled_from(forms))}]"


def public_names() -> st.SearchStrategy[str]:
    """A name that the public DNS may hold, in canonical form."""
    edge = st.text(_LOWER_AND_DIGITS, min_size=1, max_size=1)
    inner = st.text(_LOWER_AND_DIGITS, max_size=20)
    label = st.builds(lambda first, middle, last: f"{first}{middle}-{last}", edge, inner, edge)
    # No label starts with "xn--": the hyphen comes after at least one letter and has no neighbour.
    labels = st.lists(st.one_of(label, edge), min_size=1, max_size=4)
    last = st.sampled_from(_TOP_LEVEL_DOMAINS)
    return st.builds(lambda front, end: ".".join([*front, end]), labels, last)


def public_urls() -> st.SearchStrategy[str]:
    """A URL that the policy accepts without any setting, in canonical form."""
    path = st.text(string.ascii_letters + string.digits + "/-._~%!$&'()*+,;=:@[]", max_size=60)
    query = st.one_of(st.just(""), path.map("?{}".format))
    hosts = st.one_of(public_names(), public_addresses().map(_url_host))
    return st.builds(lambda host, tail, end: f"https://{host}/{tail}{end}", hosts, path, query)


def egress_rules() -> st.SearchStrategy[EgressRules]:
    """Any egress rules."""
    ports = st.integers(1, 65_535)
    entries = st.builds(EgressEntry, network=_networks(), port=st.one_of(st.none(), ports))
    lists = st.lists(entries, max_size=3).map(tuple)
    return st.builds(
        EgressRules,
        ports=st.frozensets(ports, min_size=1, max_size=4),
        allow=lists,
        deny=lists,
        unsafe_allow=lists,
    )


def _networks() -> st.SearchStrategy[Network]:
    addresses: st.SearchStrategy[Address] = st.one_of(special_addresses(), public_addresses())
    return addresses.flatmap(_networks_around)


def _networks_around(address: Address) -> st.SearchStrategy[Network]:
    return st.integers(0, address.max_prefixlen).map(lambda bits: ip_network((address, bits), strict=False))


def _url_host(address: Address) -> str:
    return str(address) if isinstance(address, IPv4Address) else f"[{address}]"


def _full_width(text: str) -> str:
    return "".join(chr(ord(character) + 0xFEE0) for character in text)


_DAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


# By hand, since strftime's names depend on the locale.
def _imf_date(moment: datetime) -> str:
    day, month = _DAYS[moment.weekday()][:3], _MONTHS[moment.month - 1]
    return f"{day}, {moment.day:02} {month} {moment.year:04} {moment:%H:%M:%S} GMT"


def _rfc850_date(moment: datetime) -> str:
    day, month = _DAYS[moment.weekday()], _MONTHS[moment.month - 1]
    return f"{day}, {moment.day:02}-{month}-{moment.year % 100:02} {moment:%H:%M:%S} GMT"


def _asctime_date(moment: datetime) -> str:
    day, month = _DAYS[moment.weekday()][:3], _MONTHS[moment.month - 1]
    return f"{day} {month} {moment.day:2} {moment:%H:%M:%S} {moment.year:04}"
