"""`pggit-reactor up` in one terminal, and what its user does in others."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import stat

import psycopg
import pytest
import trio

from pggit_reactor.cli.up_instance import UpInstance, find_up
from pggit_reactor.errors import NotFoundError
from pggit_reactor.receiver import verify
from pggit_reactor.testing.receiver import open_receiver

INSERT = "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body) VALUES (%s, %s, %s)"
PATIENCE_SECONDS = 30


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Up:
    """`up` in a home of its own, on free ports."""

    def __init__(self, home) -> None:
        self.home = home
        self.port = free_port()
        self.data = home.work / ".reactor" / "up"
        self.environ = {"PGGIT_REACTOR_METRICS_PORT": "0"}

    def start(self):
        running = self.home.start("up", "--port", str(self.port), **self.environ)
        running.wait_until(lambda: "worker_started" in running.stderr, "the worker")
        return running

    def again(self, *arguments: str):
        return self.home.run("up", *arguments, **self.environ)

    @property
    def instance(self) -> UpInstance:
        return find_up(self.data)


@pytest.fixture
def up(own_home):
    return Up(own_home)


async def start_trusting(up: Up, receiver):
    """Start an `up` that may send to *receiver*, which is on loopback and has a certificate of its own."""
    up.environ |= {
        "SSL_CERT_FILE": str(receiver.ca_file),
        "PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": "127.0.0.0/8:*",
    }
    return await trio.to_thread.run_sync(up.start)


async def register_at(up: Up, receiver) -> tuple[int, str]:
    """Register in a second terminal, in the same folder, which was told nothing of where requests may go."""
    add = ("webhook", "add", receiver.url("/alerts"), "--json")
    done = await trio.to_thread.run_sync(lambda: up.home.run(*add))
    assert done.status == 0, done.stderr
    added = json.loads(done.stdout)
    return added["webhook_id"], added["secret"]


def insert(up: Up, alert_id: int, webhook_id: int) -> None:
    with psycopg.connect(up.instance.dsn) as connection:
        connection.execute(INSERT, (alert_id, webhook_id, json.dumps({"alert_id": alert_id})))


async def test_a_row_inserted_while_it_is_up_is_delivered_signed(up):
    async with open_receiver() as receiver:
        running = await start_trusting(up, receiver)
        webhook_id, secret = await register_at(up, receiver)
        await trio.to_thread.run_sync(insert, up, 7, webhook_id)
        with trio.fail_after(PATIENCE_SECONDS):
            (request,) = await receiver.wait_for(1)
        running.send(signal.SIGTERM)
        status = await trio.to_thread.run_sync(running.wait)

        verify(request.body, dict(request.headers), secret)
        assert json.loads(request.body) == {"alert_id": 7}
        assert status == 0
        assert re.search(r'"status": ?"delivered".*"level": ?"info"', running.stderr)
        assert secret not in running.stdout + running.stderr


async def test_a_test_event_trusts_whom_the_up_was_told_to_trust(up):
    async with open_receiver() as receiver:
        await start_trusting(up, receiver)
        webhook_id, _ = await register_at(up, receiver)
        tested = await trio.to_thread.run_sync(lambda: up.home.run("webhook", "test", str(webhook_id)))

        assert tested.status == 0, tested.stderr
        assert len(receiver.requests) == 1


async def test_the_next_one_goes_on_with_the_data(up):
    async with open_receiver() as receiver:
        running = await start_trusting(up, receiver)
        webhook_id, secret = await register_at(up, receiver)
        running.send(signal.SIGINT)
        await trio.to_thread.run_sync(running.wait)
        up.port = free_port()
        running = await start_trusting(up, receiver)
        await trio.to_thread.run_sync(insert, up, 8, webhook_id)
        with trio.fail_after(PATIENCE_SECONDS):
            (request,) = await receiver.wait_for(1)

        verify(request.body, dict(request.headers), secret)


async def test_a_database_that_dies_is_started_again_and_delivers_what_was_committed(up):
    async with open_receiver() as receiver:
        running = await start_trusting(up, receiver)
        webhook_id, _ = await register_at(up, receiver)
        pid = int((up.data / "cluster" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGKILL)
        await trio.to_thread.run_sync(
            running.wait_until, lambda: "postgres_started" in running.stderr, "the database"
        )
        await trio.to_thread.run_sync(insert, up, 9, webhook_id)
        with trio.fail_after(PATIENCE_SECONDS):
            (request,) = await receiver.wait_for(1)

        assert json.loads(request.body) == {"alert_id": 9}
        running.send(signal.SIGTERM)
        assert await trio.to_thread.run_sync(running.wait) == 0


def test_psql_finds_it_in_the_same_folder(up):
    up.start()
    done = up.home.run("psql", "--up", "--", "-At", "-c", "SELECT count(*) FROM pggit.webhook", **up.environ)

    assert done.stdout == "0\n"
    assert done.status == 0


def test_what_it_prints_works_in_another_folder(up):
    running = up.start()
    lines = re.findall(r"^  export (\w+)=(.*)$", running.stdout, re.MULTILINE)
    environ = {name: shlex.split(value)[0] for name, value in lines}
    elsewhere = up.home.work / "elsewhere"
    elsewhere.mkdir()
    done = up.home.run("webhook", "list", "--json", folder=elsewhere, **environ)

    assert [*environ] == ["PGGIT_REACTOR_DATABASE_URL", "PGGIT_REACTOR_MASTER_KEY_FILE"]
    assert done.status == 0, done.stderr


def test_a_second_one_on_the_same_data_names_the_first(up):
    first = up.start()
    second = up.again("--port", str(free_port()))

    assert second.status == 2
    assert f"in use by process {first.pid}" in second.stderr
    with psycopg.connect(up.instance.dsn) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    assert up.instance.pid == first.pid


def test_a_port_that_is_taken_is_named_with_the_option_that_changes_it(up):
    up.start()
    second = up.again("--data", "elsewhere", "--port", str(up.port))

    assert second.status == 2
    assert f"port {up.port} of 127.0.0.1 is taken; choose another with --port" in second.stderr


def test_it_stops_all_of_it_and_keeps_the_data(up, home):
    up.home = home
    up.data = home.work / ".reactor" / "up"
    running = up.start()
    assert up.instance.pid == running.pid
    running.send(signal.SIGINT)

    assert running.wait() == 0
    assert home.processes() == {}
    assert list(home.temporary.iterdir()) == []
    assert sorted(path.name for path in up.data.iterdir()) == [
        "cluster",
        "lock",
        "master.key",
        "password",
        "pgpass",
        "server.log",
    ]
    with pytest.raises(NotFoundError, match="no `up` runs on"):
        find_up(up.data)


def test_it_can_be_stopped_while_it_starts(up, gone):
    running = up.home.start("up", "--port", str(up.port), **up.environ)
    running.wait_until(lambda: any("bin/initdb " in line for line in up.home.processes().values()), "initdb")
    running.send(signal.SIGTERM)

    assert running.wait() == 0
    assert gone(up.home) == {}


def test_what_is_killed_takes_its_database_along(up, gone):
    running = up.start()
    running.send(signal.SIGKILL)
    running.wait()

    assert gone(up.home) == {}
    with pytest.raises(NotFoundError, match=f"process {running.pid}\\) has ended"):
        find_up(up.data)


def test_the_folder_and_its_secrets_are_for_their_owner_alone(up):
    running = up.start()
    password = (up.data / "password").read_text().strip()
    key = up.instance.master_key().reveal()

    assert stat.S_IMODE(up.data.stat().st_mode) == 0o700
    for name in ("master.key", "pgpass", "password"):
        assert stat.S_IMODE((up.data / name).stat().st_mode) == 0o600
    said = running.stdout + running.stderr + (up.data / "running.json").read_text()
    assert password not in said
    assert key not in said
