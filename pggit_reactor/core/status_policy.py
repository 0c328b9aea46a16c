"""What HTTP statuses mean for one webhook, where that is not what they mean for all.

A policy names statuses, exactly (``404``) or by their hundred (``5xx``), and calls each ``permanent`` (dead at once) or
``transient`` (tried again). It never makes a delivery of what is none, so 2xx cannot be named. A number counts more
than its hundred. What a hundred leaves alone, because it means more than yes or no: 410, and the patience that 429, and
503 with a Retry-After, ask for. Naming 410 turns off that it disables the webhook; naming 429 or 503 `permanent` turns
off the patience.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

import attrs

from pggit_reactor.errors import ConfigurationError

NAMES_MAX: Final = 64
"""Names in one policy."""

_STATUS: Final = re.compile(r"[345][0-9][0-9]")
_HUNDRED: Final = re.compile(r"[345]xx")
_SHOWN_CHARACTERS_MAX: Final = 40
_NAMES: Final = "300 to 599, 3xx, 4xx, 5xx"


class Meaning(StrEnum):
    """What a named status means."""

    PERMANENT = "permanent"
    TRANSIENT = "transient"


@attrs.frozen(kw_only=True)
class StatusPolicy:
    """A webhook's own table of statuses; empty, it changes nothing."""

    statuses: Mapping[int, Meaning] = MappingProxyType({})
    hundreds: Mapping[int, Meaning] = MappingProxyType({})
    """By first digit."""
    complaint: str | None = None
    """Why the table that is stored cannot be read; then it is as if there were none."""

    @classmethod
    def parse(cls, table: Mapping[str, object]) -> StatusPolicy:
        """Return the policy that *table* writes out; `ConfigurationError` names what is wrong in it."""
        if len(table) > NAMES_MAX:
            raise ConfigurationError(
                f"status_policy names {len(table)} statuses; at most {NAMES_MAX} are right"
            )
        statuses: dict[int, Meaning] = {}
        hundreds: dict[int, Meaning] = {}
        for name, word in table.items():
            meaning = _meaning(name, word)
            if _STATUS.fullmatch(name):
                statuses[int(name)] = meaning
            elif _HUNDRED.fullmatch(name):
                hundreds[int(name[0])] = meaning
            else:
                raise ConfigurationError(f"status_policy has no name {_shown(name)}; right are {_NAMES}")
        return cls(statuses=MappingProxyType(statuses), hundreds=MappingProxyType(hundreds))

    @classmethod
    def read(cls, stored: str | None) -> StatusPolicy:
        """Return the policy that the registry holds, as JSON; never fails, see `complaint`."""
        if stored is None:
            return NO_POLICY
        try:
            table = json.loads(stored)
        except (ValueError, RecursionError):
            table = "no JSON that a program would read"
        if not isinstance(table, dict):
            return cls(
                complaint=f"status_policy is {_shown(table)}; right is an object of names and meanings"
            )
        try:
            return cls.parse(table)
        except ConfigurationError as error:
            return cls(complaint=str(error))

    def table(self) -> dict[str, str]:
        """Return what `parse` reads, in the order of the statuses."""
        names = {f"{hundred}xx": meaning for hundred, meaning in self.hundreds.items()}
        names |= {str(status): meaning for status, meaning in self.statuses.items()}
        return {name: names[name].value for name in sorted(names)}

    def of_hundred(self, status: int) -> Meaning | None:
        """Return what the hundred of *status* is said to mean, where that counts for it."""
        return None if status == _GONE else self.hundreds.get(status // 100)


NO_POLICY: Final = StatusPolicy()
_GONE: Final = 410


def parse_words(words: Iterable[str]) -> StatusPolicy:
    """Return the policy of words such as ``404:transient``; `ConfigurationError` names the wrong one."""
    table: dict[str, object] = {}
    for word in words:
        name, colon, meaning = word.strip().partition(":")
        if not colon:
            raise ConfigurationError(
                f"status_policy: {_shown(word)} is not STATUS:MEANING, such as 404:transient"
            )
        if name in table:
            raise ConfigurationError(f"status_policy names {_shown(name)} twice")
        table[name] = meaning
    return StatusPolicy.parse(table)


def _meaning(name: str, word: object) -> Meaning:
    if isinstance(word, str) and word in set(Meaning):
        return Meaning(word)
    raise ConfigurationError(
        f"status_policy calls {_shown(name)} {_shown(word)}; right are {' and '.join(Meaning)}"
    )


def _shown(value: object) -> str:
    text = json.dumps(value) if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARACTERS_MAX else text[:_SHOWN_CHARACTERS_MAX] + "..."
