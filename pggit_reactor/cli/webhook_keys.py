"""The KEY=VALUE words of `webhook add` and `webhook set`: what each takes, and what it becomes.

Only what has an effect, or a column that keeps it for a version that will have one, is here; the table is
what the help prints, so nothing is offered that does nothing.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.cli.lazy import guess
from pggit_reactor.cli.moments import seconds_of
from pggit_reactor.cli.webhook_certificates import CERTIFICATE_KEYS, read_certificates
from pggit_reactor.config.settings import ATTEMPT_TIMEOUT_SECONDS_MAX
from pggit_reactor.core.headers import check_extra_headers
from pggit_reactor.core.model import Ordering, SignatureScope
from pggit_reactor.core.pins import PINS_MAX, parse_pins
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.status_policy import parse_words
from pggit_reactor.db.registry import Change
from pggit_reactor.errors import ConfigurationError
from pggit_reactor.security.certificates import RegisteredCertificates

NAME_CHARACTERS_MAX: Final = 255
LABELS_MAX: Final = 64
LABEL_CHARACTERS_MAX: Final = 255
HEADER_FILE_OCTETS_MAX: Final = 8192

_HEADER: Final = "header."
_LABEL: Final = "label."
_NUMBER: Final = re.compile(r"[0-9]{1,12}")
_DECIMAL: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,6})?")
_DAY_SECONDS: Final = 86_400.0
_BODY_BYTES_MAX: Final = 16_777_216


@attrs.frozen
class _Key:
    """A key that stands for one field of `Policy`."""

    field: str
    takes: str
    """What is right, for the help and for errors."""
    parse: Callable[[str], object | None]
    """Returns None for what is not right."""


def _whole(least: int, most: int) -> Callable[[str], int | None]:
    def parse(word: str) -> int | None:
        return int(word) if _NUMBER.fullmatch(word) and least <= int(word) <= most else None

    return parse


def _seconds(least: float, most: float) -> Callable[[str], float | None]:
    def parse(word: str) -> float | None:
        seconds = seconds_of(word)
        return seconds if seconds is not None and least <= seconds <= most else None

    return parse


def _rate(word: str) -> float | None:
    return float(Decimal(word)) if _DECIMAL.fullmatch(word) else None


def _status_policy(word: str) -> dict[str, str]:
    return parse_words(word.split(",")).table()


def _scope(word: str) -> SignatureScope | None:
    return SignatureScope(word) if word in set(SignatureScope) else None


def _ordering(word: str) -> Ordering | None:
    return Ordering(word) if word in set(Ordering) else None


KEYS: Final = MappingProxyType(
    {
        "concurrency": _Key("concurrency", "attempts at once, 1 to 256", _whole(1, 256)),
        "attempt_timeout": _Key(
            "attempt_timeout", "a time from 100ms to 20s", _seconds(0.1, ATTEMPT_TIMEOUT_SECONDS_MAX)
        ),
        "max_attempts": _Key("max_attempts", "attempts in all, 1 to 1000", _whole(1, 1000)),
        "give_up_after": _Key(
            "give_up_after",
            "a time such as 90m, 72h or 7d, at most 365d",
            _seconds(0.001, 365 * _DAY_SECONDS),
        ),
        "max_body_bytes": _Key(
            "max_body_bytes", f"octets, 1 to {_BODY_BYTES_MAX}", _whole(1, _BODY_BYTES_MAX)
        ),
        "signature_scope": _Key(
            "signature_scope", "full, or body-only for receivers of the old guide", _scope
        ),
        "pins": _Key(
            "pins", f"sha256/BASE64 of the receiver's public key, 1 to {PINS_MAX} with commas", parse_pins
        ),
        "rotate_every": _Key(
            "rotate_every",
            "how often a new signing secret is made, from 1h to 3650d; by default never",
            _seconds(3600, 3650 * _DAY_SECONDS),
        ),
        "weight": _Key("weight", "its share of a worker that is short of room, 1 to 100", _whole(1, 100)),
        "status_policy": _Key(
            "status_policy", "404:transient,5xx:permanent: what statuses mean here", _status_policy
        ),
        "ordering": _Key(
            "ordering", "none, webhook (one after another) or key (so for each ordering_key)", _ordering
        ),
        "rate": _Key("rate_per_s", "attempts a second, 0 for no limit", _rate),
        "burst": _Key("burst", "attempts that may begin at once, 1 to 1000000", _whole(1, 1_000_000)),
    }
)

_OTHER_KEYS: Final = MappingProxyType(
    {
        "name": f"1 to {NAME_CHARACTERS_MAX} printable characters, not a number alone",
        "url": "an https URL",
        **CERTIFICATE_KEYS,
        "header.NAME": "sent with each delivery, sealed; @FILE reads the value from a file",
        "label.NAME": "any text, for people",
        "labels": 'all labels at once, as JSON: {"team": "db"}',
    }
)


def keys_help() -> str:
    """Return the table of keys for a command's help."""
    takes = {name: key.takes for name, key in KEYS.items()} | dict(_OTHER_KEYS)
    width = max(map(len, takes))
    return "\n".join(f"  {name.ljust(width)}  {words}" for name, words in takes.items())


def parse_change(words: Iterable[str]) -> Change:
    """Return what *words* ask for; `ConfigurationError` says which is wrong and what would be right.

    ``KEY=`` with nothing behind it puts the default back, or takes a header or label away. A `url` is
    neither parsed nor judged here.
    """
    asked = _Asked()
    seen: set[str] = set()
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigurationError(f"{name!r} is not KEY=VALUE{guess(name, _all_keys())}")
        if name in seen:
            raise ConfigurationError(f"{name} is given twice")
        seen.add(name)
        asked.take(name, value)
    return asked.change()


@attrs.define(eq=False)
class _Asked:
    """Gathers words into a `Change`."""

    name: str | None = None
    url: Secret[str] | None = None
    policy: dict[str, object] = attrs.field(factory=dict)
    headers: dict[str, Secret[str] | None] = attrs.field(factory=dict)
    certificates: dict[str, RegisteredCertificates | None] = attrs.field(factory=dict)
    labels: dict[str, str | None] = attrs.field(factory=dict)
    replaces_labels: bool = False

    def take(self, name: str, value: str) -> None:
        if name in KEYS:
            self.policy[KEYS[name].field] = _parsed(name, value)
        elif name.startswith(_HEADER):
            self.headers[name.removeprefix(_HEADER)] = _header_value(name, value)
        elif name.startswith(_LABEL):
            self.labels |= _label(name.removeprefix(_LABEL), value or None)
        elif name in CERTIFICATE_KEYS:
            self.certificates[name] = read_certificates(name, value, wall_now=time.time())
        elif name == "labels":
            self.replaces_labels = True
            self.labels = _labels(value) | self.labels
        elif name == "name":
            self.name = checked_name(value)
        elif name == "url":
            self.url = Secret(value)
        else:
            raise ConfigurationError(f"there is no key {name!r}{guess(name, _all_keys())}")

    def change(self) -> Change:
        # Judged here without what is stored, so that a wrong name or value is refused before any work.
        check_extra_headers({name: value.reveal() for name, value in self.headers.items() if value})
        return Change(
            name=self.name,
            url=self.url,
            policy=self.policy,
            headers=self.headers,
            certificates=self.certificates,
            labels=self.labels,
            replaces_labels=self.replaces_labels,
        )


def checked_name(value: str) -> str:
    """Return *value* if it may name a webhook."""
    # A number alone would be taken for an id wherever either may stand.
    is_number = value.removeprefix("-").isdecimal()
    if value.strip() and value.isprintable() and len(value) <= NAME_CHARACTERS_MAX and not is_number:
        return value
    raise ConfigurationError(f"{value[:40]!r} is not a name; right is {_OTHER_KEYS['name']}")


def _parsed(name: str, value: str) -> object | None:
    if not value:
        return None
    parsed = KEYS[name].parse(value.strip())
    if parsed is None:
        raise ConfigurationError(f"{name}={value[:40]} is wrong; right is {KEYS[name].takes}")
    return parsed


def _header_value(name: str, value: str) -> Secret[str] | None:
    if not value:
        return None
    if not value.startswith("@"):
        return Secret(value)
    path = Path(value[1:])
    try:
        with path.open("rb") as file:
            octets = file.read(HEADER_FILE_OCTETS_MAX + 1)
        content = octets.decode("latin-1").rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"{name}: cannot read {path}: {error.strerror}") from None
    if not content or len(octets) > HEADER_FILE_OCTETS_MAX:
        raise ConfigurationError(f"{name}: {path} is empty or has more than {HEADER_FILE_OCTETS_MAX} octets")
    return Secret(content)


def _labels(value: str) -> dict[str, str | None]:
    try:
        found = json.loads(value or "{}")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or len(found) > LABELS_MAX:
        raise ConfigurationError(f"labels is wrong; right is {_OTHER_KEYS['labels']}, at most {LABELS_MAX}")
    labels: dict[str, str | None] = {}
    for name, text in found.items():
        labels |= _label(name, text)
    return labels


def _label(name: str, value: object) -> Mapping[str, str | None]:
    for word in (name, value):
        if word is None:
            continue
        if not isinstance(word, str) or not word.isprintable() or not 1 <= len(word) <= LABEL_CHARACTERS_MAX:
            raise ConfigurationError(
                f"label {name[:40]!r} is wrong; right are texts of 1 to {LABEL_CHARACTERS_MAX} printable characters"
            )
    assert value is None or isinstance(value, str)
    return {name: value}


def _all_keys() -> dict[str, object]:
    return {**KEYS, **_OTHER_KEYS}
