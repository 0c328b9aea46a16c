"""How long to wait after a failed attempt."""

from __future__ import annotations

import math
from typing import Final

import attrs

from pggit_reactor.errors import ConfigurationError

# 2 ** 62 times any base is beyond any cap; a shift by the attempt itself would make attempt 10_000 a bignum.
_DOUBLINGS_MAX: Final = 62


def _positive(_instance: object, field: attrs.Attribute[float], value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigurationError(f"backoff {field.name} is {value}; it must be a finite number above 0")


@attrs.frozen(kw_only=True)
class Backoff:
    """Doubling waits with equal jitter (Brooker, "Exponential Backoff and Jitter", 2015).

    Half of a wait is fixed, so that a retry never comes at once; half is random, so that a herd spreads.
    """

    base_seconds: float = attrs.field(default=5.0, validator=_positive)
    cap_seconds: float = attrs.field(default=1800.0, validator=_positive)

    def delay_seconds(self, attempt: int, draw: float) -> float:
        """Return the wait after failed *attempt* (from 1); *draw* is uniform in [0, 1).

        At least half of ``min(cap, base * 2 ** (attempt - 1))``, and never more than the whole of it.
        """
        assert attempt >= 1
        assert 0 <= draw < 1
        ceiling = self.base_seconds * (1 << min(attempt - 1, _DOUBLINGS_MAX))
        return min(self.cap_seconds, ceiling) * (0.5 + draw / 2)
