"""The last line of defence against a secret in a log line.

The first is the `Secret` type: what it holds never reaches this module. What comes here are texts that
somebody else made (an exception's message, a library's warning), so the rules are shapes of secrets, and err
on the side of the mask. All patterns run in linear time on hostile text: every repetition that could
backtrack is bounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, MutableMapping
from typing import Final

from pggit_reactor.core.secret import Secret

MASK: Final = "<secret>"
TEXT_CHARS_MAX: Final = 16_384
"""A longer text keeps its end, where a traceback says what happened."""
ITEMS_MAX: Final = 64
DEPTH_MAX: Final = 4

_SECRET_FIELDS: Final = frozenset(
    {"password", "passphrase", "secret", "secrets", "authorization", "master_key", "api_token", "signature"}
)

_RULES: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"whsec_[A-Za-z0-9+/=_-]+"), f"whsec_{MASK}"),
    # User information of any URL; greedy to the last @, since an unescaped one may be part of the password.
    (re.compile(r"(://[^\s/@:]{0,128}):\S{1,256}@"), rf"\1:{MASK}@"),
    (
        re.compile(
            r"""(?i)(\bpassword["']?\s{0,8}[=:]\s{0,8})(?:'[^']{0,256}'|"[^"]{0,256}"|[^\s,;)]{1,256})"""
        ),
        rf"\1{MASK}",
    ),
    # A line of a key file (DESIGN 7): ID:base64:... or ID:passphrase:..., the latter may hold blanks.
    (re.compile(r"(:base64:)[^\s,]{1,256}"), rf"\1{MASK}"),
    (re.compile(r"(:passphrase:)[^\n,]{1,256}"), rf"\1{MASK}"),
    (re.compile(r"\beyJ[\w-]{4,4096}\.[\w-]{4,4096}\.[\w-]{0,1024}"), MASK),
    (re.compile(r"\b(v1,)[A-Za-z0-9+/]{43}="), rf"\1{MASK}"),
    (re.compile(r"\b(sha256=)[0-9a-f]{64}"), rf"\1{MASK}"),
    # The path of a webhook's URL often is its password. Ours are https; http is only ever our own loopback.
    (re.compile(r"""(https://[^\s/?#"'<>]{1,260})[/?#][^\s"'<>]{1,2048}"""), r"\1/<path>"),
)


def mask_text(text: str) -> str:
    """Return *text* with all that looks like a secret masked, and cut to `TEXT_CHARS_MAX`."""
    if len(text) > TEXT_CHARS_MAX:
        text = "[cut] " + text[-TEXT_CHARS_MAX:]
    # Every rule needs one of these; most fields of a log line have none, and skip nine searches.
    if "=" in text or ":" in text or "," in text or "whsec_" in text or "eyJ" in text:
        for pattern, mask in _RULES:
            text = pattern.sub(mask, text)
    return text


def mask_value(value: object, depth: int = 0) -> object:
    """Return *value* as plain JSON values without secrets; what is too deep or long is cut, and says so."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)  # JSON has no infinity
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _mask_items(value, depth + 1)
    return mask_text(str(value) if isinstance(value, BaseException) else repr(value))


def redact(_logger: object, _method: str, event: MutableMapping[str, object]) -> Mapping[str, object]:
    """Mask every field of a log event: a structlog processor, to run after tracebacks have become text."""
    for name, value in event.items():
        event[name] = _mask_field(name, value, 0)
    return event


def _mask_field(name: str, value: object, depth: int) -> object:
    return MASK if name.lower() in _SECRET_FIELDS else mask_value(value, depth)


def _mask_items(
    value: Mapping[object, object] | list[object] | tuple[object, ...] | set[object] | frozenset[object],
    depth: int,
) -> object:
    if depth > DEPTH_MAX:
        return "[cut: nested too deep]"
    cut = len(value) - ITEMS_MAX
    if isinstance(value, Mapping):
        fields = {
            mask_text(str(name)): _mask_field(str(name), item, depth)
            for _, (name, item) in zip(range(ITEMS_MAX), value.items(), strict=False)
        }
        return fields | {"[cut]": cut} if cut > 0 else fields
    items = [mask_value(item, depth) for _, item in zip(range(ITEMS_MAX), value, strict=False)]
    return [*items, f"[cut: {cut} more]"] if cut > 0 else items
