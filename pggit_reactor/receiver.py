"""For receivers: is this request ours? Imports no database driver, no event loop and no HTTP client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from pggit_reactor.core.signing import TOLERANCE_SECONDS, sign
from pggit_reactor.core.signing import verify as _verify_at
from pggit_reactor.errors import VerificationError

__all__ = ["VerificationError", "sign", "verify"]


def verify(
    body: bytes,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    *,
    now: float | None = None,
    tolerance_seconds: int = TOLERANCE_SECONDS,
) -> None:
    """Return if one of *secrets* signed *body* at most *tolerance_seconds* ago (or ahead); raise if not.

    *body* is the octets as received, before any parsing. *headers* may spell their names in any case;
    either family (``webhook-*`` or ``X-pgGit-*``) will do, and where both are there, they must name the
    same id and second. Drop requests whose id you have seen: a delivery keeps its id over all its attempts.
    A secret is a shared one, or the public key (``whpk_``) of a sender who signs with Ed25519. *now* is Unix time; by
    default the clock's.

    `VerificationError` says what is wrong with the request: answer 401. `ConfigurationError` says that a
    secret of yours is malformed or too short.
    """
    # The one place outside runtime/clock.py that reads the clock: a receiver has no worker around it.
    _verify_at(
        body, headers, secrets, now=time.time() if now is None else now, tolerance_seconds=tolerance_seconds
    )
