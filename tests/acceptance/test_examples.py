"""Every file of `examples/` does what its comment says: producers against a worker, receivers behind one.

Node, Go and a PostgreSQL with pgcrypto are tools that a machine may lack: what needs them is skipped there, by name.
The shell, awk, psql and openssl are required.
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
from pggit_reactor.db.binaries import DEBIAN_FOLDER
from pggit_reactor.db.embedded import embedded_postgres
from pggit_reactor.testing.database import QUICK_SETTINGS
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.rig import SIGNING_SECRET, Rig

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SECONDS_MAX = 30
RECEIVERS = (
    "receiver_python.py",
    "receiver_stdlib.py",
    "receiver_standardwebhooks.py",
    "receiver.mjs",
    "receiver.go",
)
TESTED = {
    "README.md",
    "log_lines.sh",
    "make_certificate.sh",
    "producer.sh",
    "psql.sql",
    "python_async_producer.py",
    "python_producer.py",
    "receiver.go",
    "receiver.mjs",
    "receiver.sql",
    "receiver_python.py",
    "receiver_sql.py",
    "receiver_standardwebhooks.py",
    "receiver_stdlib.py",
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


def receiver_command(name: str, folder: Path) -> list[str]:
    """Return what starts the receiver *name*; skip where its tool is missing."""
    if name.endswith(".py"):
        return [sys.executable, str(EXAMPLES / name)]
    tool = {".mjs": "node", ".go": "go"}[Path(name).suffix]
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    if tool == "node":
        return [tool, str(EXAMPLES / name)]
    # Built first: `go run` would be the parent of what is to be stopped.
    environ = {"GOCACHE": str(folder / "go-cache"), "GOTOOLCHAIN": "local"} | os.environ
    program = str(folder / "receiver")
    built = subprocess.run(
        [tool, "build", "-o", program, EXAMPLES / name],
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return [program]


class ExampleReceiver:
    """A receiver of the examples as a process; what it prints can be read."""

    def __init__(
        self, command: list[str], folder: Path, secret: str, *, is_told_it: bool = True, **environ: str
    ) -> None:
        self.folder = folder
        made = subprocess.run(
            ["sh", EXAMPLES / "make_certificate.sh", folder / "certificate"], check=True, capture_output=True
        )
        assert made.stdout
        self.certificate = folder / "certificate" / "cert.pem"
        self.secret_file = folder / "secret"
        self.secret_file.touch(mode=0o600)
        self.secret_file.write_text(secret + "\n")
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, folder / "certificate", *([self.secret_file] if is_told_it else []), "0"],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | environ,
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
        started.append(ExampleReceiver(receiver_command(request.param, tmp_path), tmp_path, secret))
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
    secret_file = str(receiver.secret_file)
    assert own_home.run("key", "new", "--out", "reactor.key", **environ).status == 0
    added = own_home.run("webhook", "add", receiver.url, "--secret-file", secret_file, **environ)
    assert added.status == 0, added.stderr
    webhook_id = added.stdout.split()[-1]
    own_home.start("worker", **environ)
    with psycopg.connect(reactor_database.dsn.reveal()) as connection:
        connection.execute('SELECT pggit.enqueue(%s, \'{"alert": "x"}\')', [int(webhook_id)])

    receiver.wait_for(r'^alert \S+ \{"alert": "x"\}$')


def examined(receiver, home, *options):
    """Run `receiver check` on *receiver*; return what it found."""
    environ = {
        "PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": "127.0.0.0/8:*",
        "SSL_CERT_FILE": str(receiver.certificate),
    }
    secret_file = str(receiver.secret_file)
    return home.run(
        "receiver", "check", receiver.url, "--secret-file", secret_file, "--json", *options, **environ
    )


def ids_sent_twice(report) -> list[str]:
    return [check["delivery_id"] for check in report["checks"] if check["name"] in {"resent", "retried"}]


def test_a_receiver_passes_its_examination_and_acts_once(start_receiver, own_home):
    receiver = start_receiver(SIGNING_SECRET)
    done = examined(receiver, own_home)
    report = json.loads(done.stdout)

    assert [check for check in report["checks"] if check["verdict"] != "pass"] == []
    assert (done.status, report["families"][0]) == (0, "standard")
    assert len(ids_sent_twice(report)) == 2
    assert [
        len(re.findall(f"^alert {id_} ", receiver.said, re.MULTILINE)) for id_ in ids_sent_twice(report)
    ] == [1, 1]


def test_a_receiver_passes_its_examination_with_two_secrets(start_receiver, own_home):
    receiver = start_receiver(f"{new_secret(bytes(range(32)))}\n{SIGNING_SECRET}")

    assert examined(receiver, own_home).status == 0


@pytest.fixture(scope="module")
def pgcrypto_database():
    """A database of a server that has pgcrypto, which the embedded one has not."""
    for folder in sorted(DEBIAN_FOLDER.glob("*/bin"), reverse=True):
        if not (folder / "initdb").exists():
            continue
        with embedded_postgres(settings=QUICK_SETTINGS, bin_dir=folder) as server:
            with psycopg.connect(server.dsn.reveal()) as connection:
                query = "SELECT count(*) FROM pg_available_extensions WHERE name = 'pgcrypto'"
                has_it = connection.execute(query).fetchone()
            if has_it == (1,):
                yield server.dsn.reveal()
                return
    pytest.skip("no PostgreSQL with pgcrypto is installed")


def install_sql_receiver(dsn: str, secret_file: Path) -> None:
    with secret_file.open() as secret:
        done = subprocess.run(
            ["psql", dsn, "--no-psqlrc", "--quiet", "--file", EXAMPLES / "receiver.sql"],
            stdin=secret, check=False, capture_output=True, text=True,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_the_receiver_in_sql_passes_its_examination_and_acts_once(pgcrypto_database, own_home, tmp_path):
    receiver = ExampleReceiver(
        [sys.executable, str(EXAMPLES / "receiver_sql.py")],
        tmp_path,
        f"{new_secret(bytes(range(32)))}\n{SIGNING_SECRET}",
        is_told_it=False,
        PGGIT_REACTOR_DATABASE_URL=pgcrypto_database,
    )
    try:
        for _ in range(2):  # it may be run again
            install_sql_receiver(pgcrypto_database, receiver.secret_file)
        done = examined(receiver, own_home)
        report = json.loads(done.stdout)
    finally:
        receiver.stop()

    assert [check for check in report["checks"] if check["verdict"] != "pass"] == []
    assert done.status == 0
    with psycopg.connect(pgcrypto_database) as connection:
        known = connection.execute(
            "SELECT count(*) FROM alert_inbox.received WHERE webhook_id = ANY (%s)", [ids_sent_twice(report)]
        ).fetchone()
        taken = connection.execute("SELECT count(*) FROM alert_inbox.received").fetchone()
    assert known == (2,)
    wanted = sum(check["wants"] == "2xx" for check in report["checks"])
    assert taken is not None
    assert taken[0] >= wanted - 2


def test_who_runs_the_front_of_the_receiver_in_sql_reads_no_secret(pgcrypto_database, tmp_path):
    (tmp_path / "secret").write_text(SIGNING_SECRET)
    install_sql_receiver(pgcrypto_database, tmp_path / "secret")
    with psycopg.connect(pgcrypto_database, autocommit=True) as connection:
        connection.execute("CREATE ROLE front")
        connection.execute("GRANT USAGE ON SCHEMA alert_inbox TO front")
        connection.execute("GRANT EXECUTE ON FUNCTION alert_inbox.receive_alert TO front")
        connection.execute("SET ROLE front")
        body = b"{}"
        headers = json.dumps(signed(body))
        answered = connection.execute("SELECT alert_inbox.receive_alert(%b, %s)", (body, headers)).fetchone()
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT * FROM alert_inbox.signing_secret")

    assert answered == (204,)
