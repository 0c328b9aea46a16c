"""Composes the octets of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pggit_reactor.core.model import FailureKind
from pggit_reactor.core.url_policy import Target
from pggit_reactor.delivery.failures import AttemptError

_ONE_WRITE_OCTETS_MAX: Final = 64 * 1024
"""Up to here head and body travel in one write; beyond, copying the body costs more than a second write."""

_BODILESS: Final = frozenset({"GET", "HEAD", "OPTIONS", "DELETE"})


def compose_request(
    method: str, target: Target, headers: Sequence[tuple[str, str]], body: bytes
) -> tuple[bytes, ...]:
    """Return the request as the parts to write, the body's octets unchanged.

    Host, Accept-Encoding and Content-Length are set here, so *headers* may not hold them. `AttemptError`
    (bad_headers) where a header cannot be written, or would write more than one line.
    """
    lines = [
        f"{method} {target.path_and_query.reveal()} HTTP/1.1",
        f"Host: {target.authority}",
        "Accept-Encoding: identity",
    ]
    lines += [f"{name}: {value}" for name, value in headers]
    if body or method not in _BODILESS:
        lines.append(f"Content-Length: {len(body)}")
    text = "\r\n".join(lines)
    # The last defence against a header that smuggles another one in: as many line ends as we wrote.
    if not text.count("\r") == text.count("\n") == len(lines) - 1 or "\0" in text:
        raise AttemptError(FailureKind.BAD_HEADERS, "a header holds a line end or a NUL")
    try:
        head = f"{text}\r\n\r\n".encode("latin-1")
    except UnicodeEncodeError:
        raise AttemptError(FailureKind.BAD_HEADERS, "a header holds a character outside Latin-1") from None
    return (head + body,) if len(body) <= _ONE_WRITE_OCTETS_MAX else (head, body)
