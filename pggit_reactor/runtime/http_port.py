"""The worker's HTTP port: `/metrics`, `/health` and `/ready` (DESIGN 8).

What they say comes from a `ProbeSource`: `WorkerProbes` in a worker, the sum of its workers in the supervisor
of ``--processes``. The address is a host and a port, or ``unix:PATH`` for the host, which is how a supervised
worker is reached: no port to collide with, and nobody else may connect.
"""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import attrs
import trio

from pggit_reactor.errors import ConfigurationError
from pggit_reactor.observability.exposition import render
from pggit_reactor.observability.health import Health, Report
from pggit_reactor.observability.logs import get_logger
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime.clock import Clock, SystemClock
from pggit_reactor.runtime.http_wire import (
    CONNECTIONS_MAX,
    Handler,
    Request,
    Response,
    plain_response,
    serve_connections,
)

UNIX_PREFIX: Final = "unix:"
REFRESH_SECONDS_MAX: Final = 0.5
"""A supervisor gives a worker 1 s for its whole answer."""
REFRESH_INTERVAL_SECONDS: Final = 1.0
"""However many scrape, the database is asked once in this time."""

_log = get_logger("http")


@attrs.frozen(kw_only=True)
class HttpAddress:
    """Where the port listens: host and port, or the path of a unix socket."""

    host: str = ""
    port: int = 0
    path: Path | None = None


class ProbeSource(Protocol):
    """What the port shows."""

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the exposition and its content type."""

    async def health(self) -> Report:
        """Return what `/health` says."""

    async def ready(self) -> Report:
        """Return what `/ready` says."""


class WorkerProbes:
    """The source of one worker: its `Metrics` and `Health`, and gauges that are asked of the database."""

    def __init__(
        self, *, metrics: Metrics, health: Health, refresh: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self._metrics = metrics
        self._health = health
        self._refresh = refresh
        self._refreshing = trio.Lock()
        self._refreshed = -REFRESH_INTERVAL_SECONDS

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Refresh what comes from the database, if it answers in time, and return the exposition."""
        await self._refresh_bounded()
        self._metrics.set_up(self._health.health().ok)
        return await render(self._metrics, accept=accept)

    async def health(self) -> Report:
        """Return whether the loops make progress."""
        return self._health.health()

    async def ready(self) -> Report:
        """Return whether the worker works."""
        return self._health.ready()

    async def _refresh_bounded(self) -> None:
        if self._refresh is None:
            return
        with trio.move_on_after(REFRESH_SECONDS_MAX) as scope:
            async with self._refreshing:
                if trio.current_time() < self._refreshed + REFRESH_INTERVAL_SECONDS:
                    return
                self._refreshed = trio.current_time()
                try:
                    await self._refresh()
                except Exception:  # noqa: BLE001  # a scrape with old figures says more than none
                    self._metrics.refresh_failed()
                    _log.debug("scrape_refresh_failed", exc_info=True)
        if scope.cancelled_caught:
            self._metrics.refresh_failed()


async def serve_http_port(
    source: ProbeSource,
    *,
    host: str,
    port: int = 0,
    clock: Clock | None = None,
    task_status: trio.TaskStatus[HttpAddress] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve *source* until cancelled; `started` gives the bound address, where port 0 took any.

    An address that cannot be bound is a `ConfigurationError`. A handler's error is answered with 500 and
    logged.
    """
    listeners = await _listen(host, port)
    task_status.started(_announce(listeners[0]))
    await _serve(source, listeners, clock or SystemClock())


@asynccontextmanager
async def open_http_port(
    source: ProbeSource, *, host: str, port: int = 0, clock: Clock | None = None
) -> AsyncIterator[HttpAddress]:
    """Serve *source* while the block runs; see `serve_http_port`."""
    listeners = await _listen(host, port)  # outside the nursery, so that its error comes alone
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_serve, source, listeners, clock or SystemClock())
        try:
            yield _announce(listeners[0])
        finally:
            nursery.cancel_scope.cancel()


async def _serve(source: ProbeSource, listeners: list[trio.SocketListener], clock: Clock) -> None:
    path = _bound_address(listeners[0]).path
    try:
        await serve_connections(partial(_handle, _routes(source)), listeners, clock=clock)
    finally:
        if path is not None:
            path.unlink(missing_ok=True)


async def _listen(host: str, port: int) -> list[trio.SocketListener]:
    try:
        if host.startswith(UNIX_PREFIX):
            return [await _listen_unix(host.removeprefix(UNIX_PREFIX))]
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=CONNECTIONS_MAX)
    except (OSError, OverflowError) as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error}; choose another"
            " (settings metrics.host and metrics.port; port 0 takes any)"
        ) from error
    if port == 0:  # a name with several addresses got a port for each: one is what we can name
        for extra in listeners[1:]:
            await extra.aclose()
        return listeners[:1]
    return listeners


async def _listen_unix(path: str) -> trio.SocketListener:
    bound = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        await bound.bind(path)
        bound.listen(CONNECTIONS_MAX)
    except OSError:
        bound.close()
        raise
    return trio.SocketListener(bound)


def _bound_address(listener: trio.SocketListener) -> HttpAddress:
    name = listener.socket.getsockname()
    if isinstance(name, str):
        return HttpAddress(path=Path(name))
    return HttpAddress(host=name[0], port=name[1])


def _announce(listener: trio.SocketListener) -> HttpAddress:
    address = _bound_address(listener)
    if address.path is None:
        _log.info("http_listening", host=address.host, port=address.port)
    else:
        _log.debug("http_listening_private", path=str(address.path))
    return address


def _routes(source: ProbeSource) -> Mapping[str, Handler]:
    async def metrics(request: Request) -> Response:
        body, content_type = await source.metrics(request.accept)
        return Response(status=200, body=body, content_type=content_type)

    async def health(_: Request) -> Response:
        return _report_response(await source.health())

    async def ready(_: Request) -> Response:
        return _report_response(await source.ready())

    return {"/metrics": metrics, "/health": health, "/ready": ready}


async def _handle(routes: Mapping[str, Handler], request: Request) -> Response:
    route = routes.get(request.path)
    if route is None:
        return plain_response(404)
    try:
        return await route(request)
    except Exception:  # noqa: BLE001  # a probe that fails must not take the worker with it
        _log.exception("http_request_failed", route=request.path)
        return plain_response(500)


def _report_response(report: Report) -> Response:
    body = json.dumps(report.as_json()).encode() + b"\n"
    return Response(status=200 if report.ok else 503, body=body, content_type="application/json")
