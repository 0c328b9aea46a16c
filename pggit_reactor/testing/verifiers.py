"""Receivers' ways to look at a request: the right one, and the mistakes that are made in the field.

A model for tests of what examines receivers. It shares no line with `core.signing`, so that neither hides a mistake
of the other.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum

import attrs

from pggit_reactor.testing.behaviours import Behaviour, Peer, answer

_TOLERANCE_SECONDS = 300


class Flaw(StrEnum):
    """A mistake."""

    TAKES_ANYTHING = "takes anything"
    REFUSES_EVERYTHING = "refuses everything"
    IGNORES_TIME = "ignores the time"
    IGNORES_FUTURE = "ignores times ahead"
    WIDE_WINDOW = "has a window of ten minutes"
    NARROW_WINDOW = "has a window of a minute"
    SIGNS_BODY_ALONE = "computes the signature over the body alone"
    ALSO_BODY_ALONE = "takes a signature over the body alone as well"
    ONE_SIGNATURE = "compares the whole header with one signature"
    FIRST_SIGNATURE = "looks at the first signature only"
    BEGINNINGS = "compares beginnings of signatures"
    ANY_SCHEME = "ignores the scheme"
    REWRITES_JSON = "verifies what it has parsed and written again"
    DECODES_FIRST = "decodes the body before it verifies"
    BREAKS_ON_MALFORMED = "breaks on what is malformed"
    COMPARES_TEXT = "compares texts that may not be ASCII"
    REFUSES_REPEATS = "refuses repeats"
    SMALL_BODIES = "takes bodies of 64 KiB at most"
    WANTS_ALL_HEADERS = "wants both families at once"


@attrs.frozen(kw_only=True)
class _Family:
    prefix: str
    scheme: str
    write: Callable[[bytes], str]
    read_time: Callable[[str], float]


def _standard_text(mac: bytes) -> str:
    return base64.b64encode(mac).decode()


def _iso_time(text: str) -> float:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z").timestamp()


STANDARD = _Family(prefix="webhook-", scheme="v1,", write=_standard_text, read_time=int)
PGGIT = _Family(prefix="x-pggit-", scheme="sha256=", write=bytes.hex, read_time=_iso_time)
_ID_NAMES = {"webhook-": "webhook-id", "x-pggit-": "x-pggit-delivery-id"}


@attrs.define(eq=False, kw_only=True)
class Verifier:
    """A receiver's view of its requests."""

    keys: tuple[bytes, ...]
    families: tuple[_Family, ...] = (STANDARD, PGGIT)
    flaws: frozenset[Flaw] = frozenset()
    seen: list[str] = attrs.field(factory=list)
    """The ids of what was taken, in order."""

    def status(self, headers: Mapping[str, str], body: bytes, now: float) -> int:
        """Return the answer to a request; header names in lower case."""
        if Flaw.REFUSES_EVERYTHING in self.flaws:
            return 401
        if Flaw.SMALL_BODIES in self.flaws and len(body) > 65_536:
            return 413
        try:
            family = self._family_that_vouches(headers, body, now)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            return 500
        if family is None:
            return 200 if Flaw.TAKES_ANYTHING in self.flaws else 401
        id_ = headers[_ID_NAMES[family.prefix]]
        if Flaw.REFUSES_REPEATS in self.flaws and id_ in self.seen:
            return 409
        self.seen.append(id_)
        return 204

    def _family_that_vouches(self, headers: Mapping[str, str], body: bytes, now: float) -> _Family | None:
        if Flaw.DECODES_FIRST in self.flaws:
            body = body.decode().encode()
        if Flaw.REWRITES_JSON in self.flaws:
            body = json.dumps(json.loads(body)).encode()
        vouching = [family for family in self.families if self._vouches(family, headers, body, now)]
        if Flaw.WANTS_ALL_HEADERS in self.flaws and len(vouching) < len(self.families):
            return None
        return vouching[0] if vouching else None

    def _vouches(self, family: _Family, headers: Mapping[str, str], body: bytes, now: float) -> bool:
        names = (_ID_NAMES[family.prefix], f"{family.prefix}timestamp", f"{family.prefix}signature")
        is_careless = Flaw.BREAKS_ON_MALFORMED in self.flaws
        if not is_careless and not all(headers.get(name) for name in names):
            return False
        id_, stamp, offered = (headers[name] for name in names)
        try:
            seconds = family.read_time(stamp)
        except (ValueError, OverflowError):
            if is_careless:
                raise
            return False
        if not self._is_in_time(now - seconds):
            return False
        signed = f"{id_}.{stamp}.".encode()
        return any(self._matches(family, signed, body, key, offered) for key in self.keys)

    def _is_in_time(self, age: float) -> bool:
        if Flaw.IGNORES_TIME in self.flaws:
            return True
        if Flaw.IGNORES_FUTURE in self.flaws and age < 0:
            return True
        tolerance = 600 if Flaw.WIDE_WINDOW in self.flaws else _TOLERANCE_SECONDS
        return abs(age) <= (60 if Flaw.NARROW_WINDOW in self.flaws else tolerance)

    def _matches(self, family: _Family, prefix: bytes, body: bytes, key: bytes, offered: str) -> bool:
        alone = [b""] if self.flaws & {Flaw.SIGNS_BODY_ALONE, Flaw.ALSO_BODY_ALONE} else []
        prefixes = alone if Flaw.SIGNS_BODY_ALONE in self.flaws else [prefix, *alone]
        right = [family.scheme + family.write(hmac.digest(key, start + body, "sha256")) for start in prefixes]
        words = [offered] if Flaw.ONE_SIGNATURE in self.flaws else offered.split(" ")
        if Flaw.FIRST_SIGNATURE in self.flaws:
            words = words[:1]
        return any(self._equal(family, one, word) for one in right for word in words)

    def _equal(self, family: _Family, right: str, offered: str) -> bool:
        if Flaw.COMPARES_TEXT in self.flaws:
            return hmac.compare_digest(right, offered)  # raises where one is not ASCII
        if Flaw.BEGINNINGS in self.flaws:
            return bool(offered) and right.startswith(offered)
        if Flaw.ANY_SCHEME in self.flaws:
            mac = right.removeprefix(family.scheme)
            return offered.endswith(mac)
        return hmac.compare_digest(right.encode(), offered.encode())


def verifying(verifier: Verifier, wall_now: Callable[[], float]) -> Behaviour:
    """Answer as *verifier* says."""

    async def act(peer: Peer) -> None:
        headers = {name.lower(): value for name, value in peer.request.headers}
        await answer(verifier.status(headers, peer.request.body, wall_now())).act(peer)

    return Behaviour(act)
