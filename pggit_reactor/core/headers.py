"""The extra headers that a row or a webhook may add to its requests.

The names that are refused are those that would change how the request is framed or routed, what its body
is, or what a receiver takes for our signature. ``pggit.enqueue`` refuses the same in SQL; a row that came
by a plain INSERT is dead with the reason ``bad_headers``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Final, cast

from pggit_reactor.errors import BadHeadersError

HEADER_COUNT_MAX: Final = 32
HEADER_NAME_CHARS_MAX: Final = 128
HEADER_BYTES_MAX: Final = 8192
"""Of all fields, each with its name, its value, ``": "`` and the line's end."""

RESERVED_NAMES: Final = frozenset(
    {
        # Set by the sender: where the request goes, who sends it, its trace, and that answers come as they are.
        "accept-encoding",
        "expect",
        "host",
        "traceparent",
        "user-agent",
        # Hop-by-hop (RFC 9110, 7.6.1, and RFC 2616, 13.5.1): they belong to the connection.
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
RESERVED_PREFIXES: Final = ("content-", "webhook-", "x-pggit-")
TRACEPARENT: Final = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
"""What is sent as ``traceparent`` (W3C Trace Context, version 00); match it whole."""

_FIELD_OVERHEAD_BYTES: Final = 4
_NAME_SHOWN_CHARS: Final = 64
# A JSON text may spell each octet in six characters; beyond that no allowed set of headers is in it.
_JSON_CHARS_MAX: Final = 8 * HEADER_BYTES_MAX
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
# Latin-1 without the control characters of either half (and no tab: some servers fold at it).
_VALUE: Final = re.compile(r"[\x20-\x7e\xa0-\xff]*")


def check_extra_headers(items: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Return *items* in their order, each proved fit to be sent as it is (names as given, values in Latin-1).

    `BadHeadersError` names the header and the rule; never a value.
    """
    if len(items) > HEADER_COUNT_MAX:
        raise BadHeadersError(f"{len(items)} extra headers; at most {HEADER_COUNT_MAX} are allowed")
    seen: set[str] = set()
    size = 0
    for name, value in items.items():
        _check_name(name, seen)
        _check_value(name, value)
        size += len(name) + len(value) + _FIELD_OVERHEAD_BYTES
    if size > HEADER_BYTES_MAX:
        raise BadHeadersError(f"the extra headers have {size} octets; at most {HEADER_BYTES_MAX} are allowed")
    return tuple(items.items())


def parse_extra_headers(json_text: str | None) -> tuple[tuple[str, str], ...]:
    """Return the headers of a row's ``headers`` column, given as JSON text; none for SQL or JSON null."""
    if json_text is None:
        return ()
    if len(json_text) > _JSON_CHARS_MAX:
        raise BadHeadersError(
            f"the JSON of the extra headers has {len(json_text)} characters; allowed: {_JSON_CHARS_MAX}"
        )
    try:
        items = json.loads(json_text, object_pairs_hook=_unique_members)
    except (ValueError, RecursionError):
        # The parser's own message quotes nothing, but its exception holds the whole text.
        raise BadHeadersError("the extra headers are no JSON; they must be an object of strings") from None
    if items is None:
        return ()
    if not isinstance(items, dict):
        raise BadHeadersError(
            f"the extra headers are a JSON {type(items).__name__}; they must be an object of strings"
        )
    return check_extra_headers(cast("dict[str, str]", items))


def _unique_members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise BadHeadersError("the extra headers name a header twice; each may occur once")
    return members


def _check_name(name: str, seen: set[str]) -> None:
    shown = ascii(name[:_NAME_SHOWN_CHARS])
    if len(name) > HEADER_NAME_CHARS_MAX:
        raise BadHeadersError(f"header name {shown}... is longer than {HEADER_NAME_CHARS_MAX} characters")
    if not _TOKEN.fullmatch(name):
        raise BadHeadersError(f"{shown} is no header name; letters, digits and - are safe (RFC 9110, 5.6.2)")
    folded = name.lower()
    if folded in RESERVED_NAMES or folded.startswith(RESERVED_PREFIXES):
        raise BadHeadersError(
            f"header {shown} is set by the sender or belongs to the connection; use another name"
        )
    if folded in seen:
        raise BadHeadersError(f"header {shown} occurs twice, in different case; each may occur once")
    seen.add(folded)


def _check_value(name: str, value: object) -> None:
    shown = ascii(name[:_NAME_SHOWN_CHARS])
    if not isinstance(value, str):
        raise BadHeadersError(f"the value of header {shown} is a {type(value).__name__}; it must be a string")
    if not _VALUE.fullmatch(value):
        raise BadHeadersError(f"the value of header {shown} has a control character or one outside Latin-1")
    if value != value.strip(" \xa0"):
        raise BadHeadersError(f"the value of header {shown} starts or ends with a space")
