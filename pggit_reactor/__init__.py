"""pggit-reactor: INSERT a row into PostgreSQL; milliseconds after COMMIT a signed HTTPS webhook is delivered.

What receivers and Python producers need is here, and importing it loads no database driver, no event loop
and no HTTP client: each name brings what it needs when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from pggit_reactor.errors import VerificationError

if TYPE_CHECKING:
    from pggit_reactor.producer import enqueue, enqueue_async
    from pggit_reactor.receiver import sign, verify

__all__ = ["VerificationError", "__version__", "enqueue", "enqueue_async", "sign", "verify"]

__version__: Final = "0.1.0"

_HOMES: Final = MappingProxyType(
    {
        "enqueue": "pggit_reactor.producer",
        "enqueue_async": "pggit_reactor.producer",
        "sign": "pggit_reactor.receiver",
        "verify": "pggit_reactor.receiver",
    }
)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
