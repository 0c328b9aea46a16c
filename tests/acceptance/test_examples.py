"""Every file of `examples/` does what its comment says: producers against a worker, receivers behind one.

Node is the one tool that a machine may lack: `receiver.mjs` is tested where Node is, and where it is not the list of
receivers is shorter by one. The shell, awk, psql and openssl are required.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path
from urllib.request import Request, urlopen

import psycopg
import pytest
import trio

from pggit_reactor import sign
from pggit_reactor.core.signing import new_secret
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.rig import SIGNING_SECRET, Rig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SECONDS_MAX = 30
RECEIVERS = {"receiver_python.py": [sys.executable]} | (
    {"receiver.mjs": [node]} if (node := shutil.which("node")) else {}
)
TESTED = {
    "README.md",
    "log_lines.sh",
    "make_certificate.sh",
    "producer.sh",
    "psql.sql",
    "python_async_producer.py",
    "python_producer.py",
    "receiver.mjs",
    "receiver_python.py",
    "trigger_on_table.sql",
}


def test_no_example_is_without_a_test():
    assert {path.name for path in EXAMPLES.iterdir() if path.is_file()} == TESTED


# -- producers


@pytest.fixture
async def rig(reactor_database):
    async with open_receiver() as receiver:
        yield Rig(database=reactor_database, receiver=receiver)


async def run(rig, *command, stdin=b""):
    """Run an example to its end on the rig's database; return what it printed."""
    environ = os.environ | {"PGGIT_REACTOR_DATABASE_URL": rig.database.dsn.reveal()}
    done = await trio.run_process(
        [str(word) for word in command],
        env=environ,
        stdin=stdin,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


async def run_sql(rig, name, webhook_id):
    psql = ["psql", rig.database.dsn.reveal(), "--no-psqlrc", "--tuples-only", "--no-align", "--quiet"]
    return await run(rig, *psql, "--set", f"webhook_id={webhook_id}", "--file", EXAMPLES / name)


async def arrived(rig, count):
    """Return the bodies of the first *count* alerts, once all that is queued has been delivered."""
    with trio.fail_after(SECONDS_MAX):
        await rig.receiver.wait_for(count)
        await rig.until_all("delivered")
    assert len(rig.receiver.requests) == count
    return [json.loads(request.body) for request in rig.receiver.requests]


async def test_alerts_from_psql_leave_at_commit_and_never_after_a_rollback(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        printed = await run_sql(rig, "psql.sql", webhook_id)
        bodies = await arrived(rig, 6)

    assert sorted(body["alert"] for body in bodies) == [
        "checkpoint too frequent",
        "disk full",
        "replica lag",
        "table bloat",
        "table bloat",
        "table bloat",
    ]
    first, enqueued, again = printed.split()
    assert int(first) < int(enqueued) == int(again)


async def test_a_trigger_on_a_table_alerts_once_for_all_writes_above_its_limit(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        await run_sql(rig, "trigger_on_table.sql", webhook_id)
        bodies = await arrived(rig, 1)

    assert bodies == [
        {"alert": "disk nearly full", "host": "db1", "mount": "/var/lib/postgresql", "used_percent": 93}
    ]


async def test_the_trigger_example_runs_again_and_queues_nothing_twice(rig):
    webhook_id = await rig.add_webhook()
    await run_sql(rig, "trigger_on_table.sql", webhook_id)
    await run_sql(rig, "trigger_on_table.sql", webhook_id)

    assert await rig.statuses() == {"pending": 1}


async def test_writers_of_the_table_need_no_right_on_the_queue(rig):
    webhook_id = await rig.add_webhook()
    await run_sql(rig, "trigger_on_table.sql", webhook_id)
    connection = await rig.database.connect()
    role = f"writer_of_{rig.database.name}"
    await connection.execute(f"CREATE ROLE {role}")
    try:
        await connection.execute(f"GRANT INSERT ON disk_usage TO {role}")
        await connection.execute(f"SET ROLE {role}")
        await connection.execute("INSERT INTO disk_usage VALUES ('db2', '/', 99)")
    finally:
        await connection.execute("RESET ROLE")
        await connection.execute(f"DROP OWNED BY {role}")
        await connection.execute(f"DROP ROLE {role}")

    assert await rig.statuses() == {"pending": 2}


async def test_the_shell_producer_alerts_above_its_limit_once(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        first = await run(rig, "sh", EXAMPLES / "producer.sh", webhook_id, "/", 0)
        again = await run(rig, "sh", EXAMPLES / "producer.sh", webhook_id, "/", 0)
        (body,) = await arrived(rig, 1)

    assert first == again
    assert re.fullmatch(r"queued as delivery \d+\n", first)
    assert body["alert"] == "disk nearly full"
    assert body["path"] == "/"


async def test_the_shell_producer_has_nothing_to_tell_below_its_limit(rig):
    said = await run(rig, "sh", EXAMPLES / "producer.sh", 1, "/", 101)

    assert said.endswith("nothing to tell\n")
    assert await rig.statuses() == {}


async def test_the_shell_producer_quotes_what_comes_from_outside(rig, tmp_path):
    place = tmp_path / "it's a 'path'); DROP TABLE pggit.alert_delivery_queue; --"
    place.mkdir()
    await run(rig, "sh", EXAMPLES / "producer.sh", 1, place, 0)

    query = "SELECT message_body ->> 'path' FROM pggit.alert_delivery_queue"
    assert await rig.database.fetch_value(query) == str(place)


async def test_log_lines_become_alerts_octet_by_octet(rig):
    webhook_id = await rig.add_webhook()
    log = (
        "2026-11-24 12:00:00 LOG:  checkpoint starting\n"
        '2026-11-24 12:00:01 ERROR:  relation "x\\y" does not exist, \t100 %\n'
        "2026-11-24 12:00:02 FATAL:  it's \\. over\n"
        "\\.\n"
        "2026-11-24 12:00:03 PANIC:  \u00fcber\n"
    )
    async with rig.worker():
        said = await run(rig, "sh", EXAMPLES / "log_lines.sh", webhook_id, stdin=log.encode())
        bodies = await arrived(rig, 3)

    wanted = [line for line in log.splitlines() if re.search("ERROR|FATAL|PANIC", line)]
    assert said == "queued 3 deliveries\n"
    assert sorted(body["line"] for body in bodies) == wanted


async def test_a_log_without_trouble_queues_nothing(rig):
    assert (
        await run(rig, "sh", EXAMPLES / "log_lines.sh", 1, stdin=b"all is well\n") == "queued 0 deliveries\n"
    )


async def test_the_python_producer_queues_in_the_transaction_of_its_change(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        said = await run(rig, sys.executable, EXAMPLES / "python_producer.py", webhook_id)
        (body,) = await arrived(rig, 1)

    assert "rolled back, row and alert: division by zero" in said
    assert body == {"alert": "backup failed", "database": "orders", "error": "no space left", "run": 1}
    assert await rig.database.fetch("SELECT database_name FROM backup_run") == [("orders",)]
    assert rig.receiver.requests[0].header("x-pggit-event-type") == "backup.failed"


async def test_the_async_producer_queues_each_key_once(rig):
    webhook_id = await rig.add_webhook()
    async with rig.worker():
        said = await run(rig, sys.executable, EXAMPLES / "python_async_producer.py", webhook_id)
        bodies = await arrived(rig, 3)

    assert sorted(body["host"] for body in bodies) == ["db1", "db2", "db3"]
    assert len(set(re.findall(r"db2 is delivery (\d+)", said))) == 1


# -- receivers


class ExampleReceiver:
    """A receiver of the examples as a process; what it prints can be read."""

    def __init__(self, name: str, folder: Path, secret: str, port: int = 0) -> None:
        self.folder = folder
        made = subprocess.run(
            ["sh", EXAMPLES / "make_certificate.sh", folder / "certificate"], check=True, capture_output=True
        )
        assert made.stdout
        self.certificate = folder / "certificate" / "cert.pem"
        (folder / "secret").write_text(secret + "\n")
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*RECEIVERS[name], EXAMPLES / name, folder / "certificate", folder / "secret", str(port)],
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        self.url = self.wait_for(r"listening on (https://\S+)")[1] + "/alerts"

    @property
    def said(self) -> str:
        return self._output.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Look until it has printed *pattern*: another process announces nothing to us."""
        deadline = time.monotonic() + SECONDS_MAX
        while (found := re.search(pattern, self.said, re.MULTILINE)) is None:
            assert self._process.poll() is None, self.said
            assert time.monotonic() < deadline, f"waited in vain for {pattern}; it said:\n{self.said}"
            time.sleep(0.01)
        return found

    def post(self, body: bytes, headers: dict[str, str]) -> int:
        """POST as a sender that trusts it; return the status."""
        request = Request(self.url, data=body, headers=headers | {"Content-Type": "application/json"})
        context = ssl.create_default_context(cafile=str(self.certificate))
        try:
            with urlopen(request, timeout=SECONDS_MAX, context=context) as answer:
                return answer.status
        except OSError as error:
            return error.code

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(SECONDS_MAX)


@pytest.fixture(params=RECEIVERS)
def start_receiver(request, tmp_path):
    started = []

    def start(secret):
        started.append(ExampleReceiver(request.param, tmp_path, secret))
        return started[0]

    yield start
    for receiver in started:
        receiver.stop()


def signed(body, *, secret=SIGNING_SECRET, id_="8f14e45f-ceea-8000-8000-000000000001", age=0):
    return sign(body, id=id_, timestamp=int(time.time()) - age, secrets=[secret])


def test_a_receiver_takes_what_is_signed_and_acts_on_a_repeat_once(start_receiver):
    receiver = start_receiver(SIGNING_SECRET)
    body = '{"alert": "ü"}'.encode()

    assert [receiver.post(body, signed(body)) for _ in range(2)] == [204, 204]
    receiver.wait_for("^alert .* \\{")
    assert receiver.said.count(body.decode()) == 1


@pytest.mark.parametrize("fault", ["body", "secret", "age", "future", "id", "unsigned"])
def test_a_receiver_refuses_what_is_not_ours(start_receiver, fault):
    receiver = start_receiver(SIGNING_SECRET)
    body = b'{"alert": 1}'
    headers = {
        "body": signed(b'{"alert": 2}'),
        "secret": signed(body, secret=new_secret(bytes(32))),
        "age": signed(body, age=301),
        "future": signed(body, age=-310),
        "id": signed(body) | {"webhook-id": "another", "X-pgGit-Delivery-ID": "another"},
        "unsigned": {},
    }[fault]

    assert receiver.post(body, headers) == 401
    receiver.wait_for("^refused")
    assert not re.search("^alert", receiver.said, re.MULTILINE)


def test_a_receiver_takes_two_secrets_while_one_replaces_the_other(start_receiver):
    newer = new_secret(bytes(range(32)))
    receiver = start_receiver(f"{newer}\n{SIGNING_SECRET}")
    body = b"{}"

    statuses = [
        receiver.post(body, signed(body, secret=secret, id_=f"id-{number}"))
        for number, secret in enumerate((newer, SIGNING_SECRET))
    ]
    assert statuses == [204, 204]


def test_a_row_reaches_a_receiver_through_commands_alone(start_receiver, own_home, reactor_database):
    """With the certificate of the examples, and as a user does it: key, webhook, worker, INSERT."""
    receiver = start_receiver(SIGNING_SECRET)
    environ = {
        "PGGIT_REACTOR_DATABASE_URL": reactor_database.dsn.reveal(),
        "PGGIT_REACTOR_MASTER_KEY_FILE": str(own_home.work / "reactor.key"),
        "PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": "127.0.0.0/8:*",
        "PGGIT_REACTOR_METRICS_PORT": "0",
        "SSL_CERT_FILE": str(receiver.certificate),
    }
    secret_file = str(receiver.folder / "secret")
    assert own_home.run("key", "new", "--out", "reactor.key", **environ).status == 0
    added = own_home.run("webhook", "add", receiver.url, "--secret-file", secret_file, **environ)
    assert added.status == 0, added.stderr
    webhook_id = added.stdout.split()[-1]
    own_home.start("worker", **environ)
    with psycopg.connect(reactor_database.dsn.reveal()) as connection:
        connection.execute('SELECT pggit.enqueue(%s, \'{"alert": "x"}\')', [int(webhook_id)])

    receiver.wait_for(r'^alert \S+ \{"alert": "x"\}$')
