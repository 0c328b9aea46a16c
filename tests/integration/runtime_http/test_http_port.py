"""The worker's port over real sockets: what a probe, a scraper and a hostile neighbour get."""

from __future__ import annotations

import json
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import h11
import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from pggit_reactor.errors import ConfigurationError, DatabaseUnavailableError
from pggit_reactor.observability.health import Health
from pggit_reactor.observability.metrics import Metrics
from pggit_reactor.runtime import http_wire
from pggit_reactor.runtime.http_port import HttpAddress, WorkerProbes, open_http_port
from pggit_reactor.runtime.http_wire import CONNECTIONS_MAX, fetch, unix_connector


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(worker_id="w-1", version="9.9.9")


def probes(
    metrics: Metrics, health: Health | None = None, refresh: Callable[[], Awaitable[None]] | None = None
):
    return WorkerProbes(metrics=metrics, health=health or Health(), refresh=refresh)


async def connect(address: HttpAddress) -> trio.SocketStream:
    return await trio.open_tcp_stream(address.host, address.port)


async def get(address: HttpAddress, path: str, *, method: str = "GET", accept: str | bytes = "*/*"):
    """Return status, headers and body of one request on a connection of its own."""
    async with await connect(address) as stream:
        client = h11.Connection(h11.CLIENT)
        head = h11.Request(method=method, target=path, headers=[("Host", "x"), ("Accept", accept)])
        await stream.send_all(client.send(head) + client.send(h11.EndOfMessage()))
        return await read_answer(stream, client)


async def read_answer(stream: trio.abc.Stream, client: h11.Connection):
    response, body = None, b""
    while True:
        event = client.next_event()
        if event is h11.NEED_DATA:
            client.receive_data(await stream.receive_some(65_536))
        elif isinstance(event, h11.Response):
            response = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            headers = {name.decode(): value.decode() for name, value in response.headers}
            return response.status_code, headers, body


async def read_to_end(stream: trio.abc.ReceiveStream) -> bytes:
    octets = b""
    try:
        async for piece in stream:
            octets += piece
    except trio.BrokenResourceError:  # the server closed with our octets unread
        pass
    return octets


async def test_metrics_are_served_as_text_by_default(metrics: Metrics) -> None:
    metrics.attempt_settled(7, "delivered", 0.2)
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        status, headers, body = await get(address, "/metrics")

    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert status == 200
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    assert families["webhook_deliveries"].type == "counter"
    assert families["worker_health_status"].samples[0].value == 1


async def test_metrics_are_served_as_openmetrics_to_whoever_prefers_it(metrics: Metrics) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        accept = "application/openmetrics-text; version=1.0.0,text/plain;q=0.5"
        status, headers, body = await get(address, "/metrics", accept=accept)

    assert status == 200
    assert headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    assert body.count(b"# EOF") == 1


@pytest.mark.parametrize(
    "accept",
    ["", "application/openmetrics-text; version=ä.x", "text/plain; version=1.0.0ä", "a" * 5000, ";;==,,"],
)
async def test_an_accept_field_without_sense_still_gets_metrics(metrics: Metrics, accept: str) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        status, _, body = await get(address, "/metrics", accept=accept.encode("latin-1"))

    assert status == 200
    assert b"webhook_queue_depth" in body


async def test_probes_answer_as_the_contract_says(metrics: Metrics) -> None:
    health = Health()
    health.watch("claimer", within_seconds=10)
    health.mark_started()
    health.set_check("database", ok=False, reason="connection refused")
    async with open_http_port(probes(metrics, health), host="127.0.0.1") as address:
        alive = await get(address, "/health")
        ready = await get(address, "/ready")

    assert alive[0] == 200
    assert json.loads(alive[2]) == {"status": "ok", "checks": {"claimer": {"ok": True, "reason": ""}}}
    assert ready[0] == 503
    assert ready[1]["content-type"] == "application/json"
    assert json.loads(ready[2])["status"] == "failing"
    assert json.loads(ready[2])["checks"]["database"] == {"ok": False, "reason": "connection refused"}


async def test_head_answers_like_get_without_the_body(metrics: Metrics) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        status, headers, body = await get(address, "/health", method="HEAD")

    assert status == 200
    assert int(headers["content-length"]) > 0
    assert body == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "CONNECT"])
async def test_other_methods_are_refused_by_name(metrics: Metrics, method: str) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        status, headers, _ = await get(address, "/metrics", method=method)

    assert status == 405
    assert headers["allow"] == "GET, HEAD"


async def test_unknown_paths_are_not_found_and_a_query_is_ignored(metrics: Metrics) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        assert (await get(address, "/"))[0] == 404
        assert (await get(address, "/metrics/"))[0] == 404
        assert (await get(address, "/health?deep=1"))[0] == 200


async def test_no_answer_names_the_server_or_its_version(metrics: Metrics) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        for path in ("/health", "/ready", "/nothing"):
            _, headers, body = await get(address, path)
            assert "server" not in headers
            assert b"9.9.9" not in body
            assert b"h11" not in body


async def test_one_connection_serves_requests_one_after_another(metrics: Metrics) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address, await connect(address) as stream:
        client = h11.Connection(h11.CLIENT)
        for path in ("/health", "/nothing", "/ready"):
            head = h11.Request(method="GET", target=path, headers=[("Host", "x")])
            await stream.send_all(client.send(head) + client.send(h11.EndOfMessage()))
            await read_answer(stream, client)
            client.start_next_cycle()


async def test_pipelined_requests_are_answered_in_order(metrics: Metrics) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address, await connect(address) as stream:
        await stream.send_all(
            b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
            b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        octets = await read_to_end(stream)

    assert octets.index(b"HTTP/1.1 200 OK") < octets.index(b"HTTP/1.1 404 Not Found")


async def test_a_request_with_a_body_is_answered_and_its_connection_closed(metrics: Metrics) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address, await connect(address) as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n")
        octets = await read_to_end(stream)

    assert octets.startswith(b"HTTP/1.1 200 OK")
    assert octets.count(b"HTTP/1.1") == 1


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\n\r\n", b"400"),
        (b"GET /health HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 20_000, b"431"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 8, b"400"),
    ],
    ids=["no request", "no host", "endless head", "a TLS hello"],
)
async def test_malformed_requests_are_refused_and_the_port_lives_on(
    metrics: Metrics, sent: bytes, status: bytes
) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        async with await connect(address) as stream:
            await stream.send_all(sent)
            await stream.send_eof()
            octets = await read_to_end(stream)
        assert octets.startswith(b"HTTP/1.1 " + status)
        assert (await get(address, "/health"))[0] == 200


async def test_a_client_that_sends_nothing_is_closed_after_the_time_limit(
    metrics: Metrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_wire, "REQUEST_SECONDS_MAX", 0.05)
    async with open_http_port(probes(metrics), host="127.0.0.1") as address, await connect(address) as stream:
        await stream.send_all(b"GET /health HTTP/1.1\r\nHost:")
        assert await stream.receive_some() == b""


async def test_a_flood_of_idle_connections_does_not_keep_a_probe_out(metrics: Metrics) -> None:
    async with open_http_port(probes(metrics), host="127.0.0.1") as address:
        idle = [await connect(address) for _ in range(CONNECTIONS_MAX)]
        try:
            for stream in idle:
                await stream.send_all(b"GET /health HTTP/1.1\r\n")
            # Each asks and leaves; so two of the idle ones at most had to go.
            with trio.fail_after(5):  # well within the time limit of a silent connection
                assert (await get(address, "/health"))[0] == 200
                assert (await get(address, "/ready"))[0] == 503
                assert await idle[0].receive_some() == b""  # the one that had waited longest
        finally:
            for stream in idle:
                await trio.aclose_forcefully(stream)


async def test_where_all_connections_are_being_answered_the_newcomer_is_closed(metrics: Metrics) -> None:
    asked = trio.Semaphore(0)
    release = trio.Event()

    class Slow(WorkerProbes):
        async def health(self):
            asked.release()
            await release.wait()
            return await super().health()

    source = Slow(metrics=metrics, health=Health())
    async with open_http_port(source, host="127.0.0.1") as address, trio.open_nursery() as nursery:
        for _ in range(CONNECTIONS_MAX):
            nursery.start_soon(get, address, "/health")
        for _ in range(CONNECTIONS_MAX):
            await asked.acquire()
        async with await connect(address) as stream:
            with trio.fail_after(5):
                assert await read_to_end(stream) == b""
        release.set()


def test_two_newcomers_at_once_do_not_count_on_the_same_place() -> None:
    scopes = {1: trio.CancelScope(), 2: trio.CancelScope()}
    server = http_wire._Server(handler=None, clock=None, waiting=dict(scopes))

    assert [server._close_longest_waiting() for _ in range(3)] == [True, True, False]
    assert all(scope.cancel_called for scope in scopes.values())


async def test_a_refresh_runs_before_the_scrape_and_is_shared_by_scrapers(metrics: Metrics) -> None:
    runs = 0

    async def refresh() -> None:
        nonlocal runs
        runs += 1
        metrics.set_queue(
            depth={"pending": 3, "retrying": 2, "failed": 9}, oldest_age_seconds={"pending": 1.5}
        )

    async with open_http_port(probes(metrics, refresh=refresh), host="127.0.0.1") as address:
        bodies = [(await get(address, "/metrics"))[2] for _ in range(3)]

    assert runs == 1
    assert b"webhook_queue_depth 5.0\n" in bodies[0]
    assert b'pggit_reactor_queue_depth{status="failed"} 9.0\n' in bodies[0]


@pytest.mark.parametrize("error", [DatabaseUnavailableError("gone"), ExceptionGroup("two", [OSError("a")])])
async def test_a_refresh_that_fails_is_counted_and_breaks_no_scrape(
    metrics: Metrics, error: Exception
) -> None:
    async def refresh() -> None:
        raise error

    async with open_http_port(probes(metrics, refresh=refresh), host="127.0.0.1") as address:
        status, _, body = await get(address, "/metrics")

    assert status == 200
    assert b"pggit_reactor_scrape_refresh_failures_total 1.0\n" in body


async def test_a_refresh_that_hangs_is_given_up(metrics: Metrics, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pggit_reactor.runtime.http_port.REFRESH_SECONDS_MAX", 0.05)
    async with open_http_port(probes(metrics, refresh=trio.sleep_forever), host="127.0.0.1") as address:
        status, _, body = await get(address, "/metrics")

    assert status == 200
    assert b"pggit_reactor_scrape_refresh_failures_total 1.0\n" in body


async def test_a_handler_that_fails_answers_500_without_a_reason(metrics: Metrics) -> None:
    class Broken(WorkerProbes):
        async def health(self):
            raise RuntimeError("postgresql://u:p@h/d")

    async with open_http_port(Broken(metrics=metrics, health=Health()), host="127.0.0.1") as address:
        status, _, body = await get(address, "/health")

    assert status == 500
    assert body == b"500 Internal Server Error\n"


async def test_an_answer_that_cannot_be_sent_ends_its_connection_and_nothing_else(metrics: Metrics) -> None:
    class Broken(WorkerProbes):
        async def metrics(self, accept: str) -> tuple[bytes, str]:
            return b"", "text/plain\r\nX-Injected: 1"

    source = Broken(metrics=metrics, health=Health())
    async with open_http_port(source, host="127.0.0.1") as address:
        async with await connect(address) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            assert await read_to_end(stream) == b""
        assert (await get(address, "/health"))[0] == 200


async def test_a_taken_port_is_a_configuration_error_that_says_what_to_do(metrics: Metrics) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"127\.0\.0\.1 port {port}: .*port 0 takes any"):
            async with open_http_port(probes(metrics), host="127.0.0.1", port=port):
                pass


async def test_a_unix_socket_serves_and_is_removed_at_the_end(metrics: Metrics, tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    async with open_http_port(probes(metrics), host=f"unix:{path}") as address:
        assert address.path == path
        assert stat.S_ISSOCK(path.stat().st_mode)
        status, body = await fetch(unix_connector(str(path)), "/metrics")

    assert status == 200
    assert b"webhook_queue_depth" in body
    assert not path.exists()


async def test_cancelling_closes_port_and_connections_at_once(metrics: Metrics) -> None:
    async with trio.open_nursery() as nursery:
        async with open_http_port(probes(metrics), host="127.0.0.1") as address:
            stream = await connect(address)
            assert (await get(address, "/health"))[0] == 200
        with trio.fail_after(1):
            assert await read_to_end(stream) == b""
        await stream.aclose()
        with pytest.raises(OSError, match=r".+"):
            await connect(address)
        nursery.cancel_scope.cancel()
