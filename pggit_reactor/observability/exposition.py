"""Turns families into the text that Prometheus reads, in small steps.

A full scrape of a worker with 200 webhooks is 3,000 lines and several milliseconds. The loop that renders it
also sends webhooks, so it lets others run after each family.
"""

from __future__ import annotations

from typing import Final

import trio
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pggit_reactor.observability.merging import Families

ACCEPT_CHARS_MAX: Final = 1024
_OPENMETRICS_END: Final = b"# EOF\n"


async def render(collector: Collector, *, accept: str) -> tuple[bytes, str]:
    """Return the exposition of *collector* and its content type, as *accept* (the request's field) prefers.

    An Accept field that makes no sense, or is longer than `ACCEPT_CHARS_MAX`, gets the plain text format.
    """
    try:
        encode, content_type = choose_encoder(accept if len(accept) <= ACCEPT_CHARS_MAX else "")
    except (ValueError, TypeError):  # TypeError: how version=1.0.x ends in prometheus_client 0.26
        encode, content_type = choose_encoder("")
    parts: list[bytes] = []
    for family in collector.collect():
        parts.append(encode(Families([family])).removesuffix(_OPENMETRICS_END))
        await trio.lowlevel.checkpoint()
    if content_type.startswith("application/openmetrics-text"):
        parts.append(_OPENMETRICS_END)
    return b"".join(parts), content_type
