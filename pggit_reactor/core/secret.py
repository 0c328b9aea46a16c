"""A string or octets that never show themselves by accident."""

from __future__ import annotations

import hmac
from typing import Generic, Never, TypeVar

T = TypeVar("T", str, bytes)

_MASK = "<secret>"


class Secret(Generic[T]):
    """Holds a secret ``str`` or ``bytes``; only `reveal` gives it back.

    ``repr``, ``str``, ``format`` and interpolation print a mask; pickling and copying by pickle raise; equality
    is constant-time and hashing is refused, so that a secret cannot become a key of a cache that is later printed.
    """

    __slots__ = ("_value",)

    def __init__(self, value: T) -> None:
        self._value: T = value

    def reveal(self) -> T:
        """Return the secret itself. Each call is a place for a reviewer to look at."""
        return self._value

    def __repr__(self) -> str:
        return _MASK

    __str__ = __repr__

    def __format__(self, spec: str, /) -> str:
        return _MASK

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(_octets(self._value), _octets(other._value))

    __hash__ = None  # type: ignore[assignment]  # mypy knows no way to say "unhashable on purpose"

    def __reduce__(self) -> Never:
        raise TypeError("a Secret does not leave its process: it cannot be pickled or copied")


def _octets(value: str | bytes) -> bytes:
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
