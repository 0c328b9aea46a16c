"""The pages run: what a page of `docs/` shows as a command, a statement or a program is executed, in its order.

Every block whose language can run is run, and must end as the page says; a block of ``text`` behind it is what it
prints, where ``...`` stands for anything. Comments before a block, which no reader sees, say what is special:

- ``<!-- not run: REASON -->``
- ``<!-- ends with: 3 -->``: its exit status, where that is not 0
- ``<!-- runs on as NAME until: TEXT -->``: left running; the page goes on once it has printed TEXT
- ``<!-- NAME says -->`` before ``text``: what a program that was left running has printed, at some time
- ``<!-- stop NAME -->``, by itself: that program is stopped there, as by Ctrl-C

A page's shell keeps its folder and its exported variables from block to block. Addresses that a test cannot have
(a port that may be taken, somebody's database) are replaced by others of the same form.
"""

from __future__ import annotations

import hashlib
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import attrs
import psycopg
import pytest
import trio
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pggit_reactor import sign
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret
from pggit_reactor.db.connect import open_connection
from pggit_reactor.db.embedded import embedded_postgres
from pggit_reactor.db.migrate import migrate
from pggit_reactor.db.sql_split import split_statements
from pggit_reactor.testing.receiver import Receiver, open_receiver
from pggit_reactor.testing.rig import Rig

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SECONDS_MAX = 60
MARKS = r"(?P<marks>(?:^<!-- (?!stop )[^>\n]* -->\n+)*)"
PIECE = re.compile(
    rf"{MARKS}^```(?P<language>\w+)\n(?P<text>.*?)^```$|^<!-- stop (?P<stopped>\w+) -->$",
    re.MULTILINE | re.DOTALL,
)
MARK = re.compile(r"<!-- ([^>\n]*) -->")
LANGUAGES = ("sh", "sql", "python", "javascript")


@attrs.frozen(kw_only=True)
class Block:
    language: str
    text: str
    marks: tuple[str, ...] = ()

    def mark(self, pattern: str) -> re.Match[str] | None:
        return next((found for mark in self.marks if (found := re.fullmatch(pattern, mark))), None)


def blocks_of(markdown: str) -> Iterator[Block]:
    """Yield the blocks of a page, and its stops as blocks of the language ``stop``."""
    for piece in PIECE.finditer(markdown):
        if piece["stopped"]:
            yield Block(language="stop", text=piece["stopped"])
        else:
            yield Block(
                language=piece["language"], text=piece["text"], marks=tuple(MARK.findall(piece["marks"]))
            )


def pattern_of(printed: str) -> re.Pattern[str]:
    """Return what matches *printed*, whatever stands for its dots and however wide its columns are."""
    return re.compile(re.escape(squeezed(printed)).replace(r"\.\.\.", ".*?"), re.DOTALL)


def squeezed(text: str) -> str:
    """Return *text* without what depends on the width of values."""
    lines = (re.sub(r"-{3,}", "---", re.sub(r"\s+", " ", line)).strip() for line in text.strip().splitlines())
    return "\n".join(lines)


class Stage:
    """The reader of one page: a folder like a clone's, a shell, and what was left running."""

    def __init__(self, folder: Path, replaced: Mapping[str, str], sql: str) -> None:
        self.folder = folder
        self.work = folder / "clone"
        self.work.mkdir()
        for name in ("examples", "docs", "migrations"):
            (self.work / name).symlink_to(ROOT / name)
        (self.work / ".venv").symlink_to(sys.prefix)
        self._sql = sql
        self._replaced = replaced
        self._state = folder / "state"
        self._state.write_text(f"cd '{self.work}'\n")
        self._programs: dict[str, subprocess.Popen[bytes]] = {}
        self._printed = ""
        self.environ = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
        self.environ |= {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "HOME": str(self.work),
            "TMPDIR": str(folder),
            "PGGIT_REACTOR_METRICS_PORT": str(free_port()),
            "PGGIT_REACTOR_DELIVERY_BACKOFF_BASE_SECONDS": "0.5",
            "PGGIT_REACTOR_LOG_FORMAT": "console",  # as on the terminal of whoever reads the page
        }

    def make_dev(self, up_options: str) -> None:
        """Put a stand-in for ./dev there: the real one would install what is installed already."""
        dev = self.work / "dev"
        dev.write_text(
            "#!/bin/sh\nword=$1; shift\n"
            f'if [ "$word" = up ]; then set -- up {up_options} "$@"; fi\nexec pggit-reactor "$@"\n'
        )
        dev.chmod(0o755)

    def play(self, block: Block) -> None:
        if block.language == "stop":
            self.stop(block.text)
        elif block.language == "text":
            self.compare(block)
        elif block.mark("not run: .+") is None:
            self.run(block)

    def compare(self, block: Block) -> None:
        wanted = pattern_of(self.replace(block.text))
        speaker = block.mark(r"(\w+) says")
        if speaker is None:
            assert wanted.fullmatch(squeezed(self._printed)), (
                f"the page says:\n{block.text}\nit said:\n{self._printed}"
            )
        else:
            self.wait_for(speaker[1], wanted)

    def run(self, block: Block) -> None:
        script = self.folder / "block"
        script.write_text(f". '{self._state}'\nset -eu\n{self.replace(self.command(block))}\n")
        lasting = block.mark(r"runs on as (\w+) until: (.+)")
        if lasting is not None:
            self.start(lasting[1], script, lasting[2])
            return
        with script.open("a") as file:
            file.write(f"set +x\n{{ echo \"cd '$PWD'\"; export -p; }} >'{self._state}'\n")
        ending = block.mark(r"ends with: (\d+)")
        done = subprocess.run(
            ["bash", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self.environ,
            stdin=subprocess.DEVNULL, text=True, check=False, timeout=SECONDS_MAX,
        )  # fmt: skip
        self._printed = done.stdout
        assert done.returncode == int(ending[1] if ending else 0), f"{block.text}\nsaid:\n{done.stdout}"

    def command(self, block: Block) -> str:
        """Return *block* as a command of the shell."""
        if block.language == "sh":
            return block.text
        program = {
            "sql": f"{self._sql} --no-psqlrc --quiet --set ON_ERROR_STOP=1 --set VERBOSITY=terse --file=-",
            "python": "python3 -",
            "javascript": "node --input-type=module -",
        }[block.language]
        return f"{program} <<'END OF BLOCK'\n{block.text}\nEND OF BLOCK"

    def replace(self, text: str) -> str:
        for shown, used in self._replaced.items():
            text = text.replace(shown, used)
        return text

    def start(self, name: str, script: Path, until: str) -> None:
        kept = script.rename(self.folder / f"{name}.sh")
        with (self.folder / name).open("wb") as output:
            self._programs[name] = subprocess.Popen(
                ["bash", kept], stdout=output, stderr=subprocess.STDOUT, env=self.environ,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
        self.wait_for(name, pattern_of(self.replace(until)))

    def wait_for(self, name: str, wanted: re.Pattern[str]) -> None:
        """Look until the program *name* has printed what is wanted: another process announces nothing to us."""
        deadline = time.monotonic() + SECONDS_MAX
        while not wanted.search(squeezed(said := (self.folder / name).read_text())):
            over = self._programs[name].poll() is not None or time.monotonic() > deadline
            assert not over, f"waited in vain for {wanted.pattern}; it said:\n{said}"
            time.sleep(0.02)

    def stop(self, name: str) -> None:
        program = self._programs.pop(name)
        # Not SIGINT, which is ignored by whatever descends from a shell's background job.
        os.killpg(program.pid, signal.SIGTERM)
        program.wait(SECONDS_MAX)

    def close(self) -> None:
        for program in self._programs.values():
            try:
                os.killpg(program.pid, signal.SIGTERM)
                program.wait(SECONDS_MAX)
            finally:
                if program.poll() is None:
                    os.killpg(program.pid, signal.SIGKILL)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def server(postgres_bin):
    """A server that lets producers prepare transactions."""
    settings = {"max_prepared_transactions": "4", "fsync": "off"}
    with embedded_postgres(settings=settings, bin_dir=postgres_bin) as running:
        yield running


@pytest.fixture
def empty_dsn(server, request) -> str:
    """A database in which nothing is yet."""
    name = re.sub(r"\W", "_", request.node.name)[:60]
    with psycopg.connect(server.dsn.reveal(), autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"')
    return server.dsn_for(name).reveal()


def play(path: Path, stage: Stage) -> None:
    """Play a page; every block that can run must have run, or say why not."""
    try:
        for block in blocks_of(path.read_text()):
            assert block.language in {*LANGUAGES, "text", "stop"}, f"{block.language}: {block.text}"
            if block.language == "javascript" and shutil.which("node") is None:
                continue
            stage.play(block)
    finally:
        stage.close()


SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0"


def test_the_quick_start_is_followed_to_its_end(own_home, empty_dsn):
    replaced = {"8443": str(free_port()), "postgresql://you@db.example.com/alerts": empty_dsn}
    stage = Stage(own_home.folder, replaced, sql="pggit-reactor psql --up --")
    stage.environ["TMPDIR"] = str(own_home.temporary)  # by it the home finds what is left running
    stage.make_dev(f"--port {free_port()}")

    play(DOCS / "quick-start.md", stage)


@pytest.fixture
def migrated_dsn(empty_dsn) -> str:
    async def run() -> None:
        async with open_connection(Secret(empty_dsn), application_name="pages") as connection:
            await migrate(connection)

    trio.run(run)
    return empty_dsn


@pytest.mark.parametrize(
    "page", ["producers", "routing", "receivers", "operations", "security", "data-protection"]
)
def test_a_page_is_followed_to_its_end(page, tmp_path, migrated_dsn):
    replaced = {"8443": str(free_port()), ":8000": f":{(probes := str(free_port()))}"}
    stage = Stage(tmp_path, replaced, sql='psql "$PGGIT_REACTOR_DATABASE_URL"')
    stage.environ |= {
        "PGGIT_REACTOR_METRICS_PORT": probes,
        "PGGIT_REACTOR_DATABASE_URL": migrated_dsn,
        "PGGIT_REACTOR_MASTER_KEY_FILE": str(tmp_path / "reactor.key"),
        "PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": "127.0.0.0/8:*",
        "WEBHOOK_SECRET": SECRET,
    }
    stage.run(
        Block(language="sh", text="pggit-reactor key new --id pages --out $PGGIT_REACTOR_MASTER_KEY_FILE")
    )

    play(DOCS / f"{page}.md", stage)


# -- the page for those who come from pgGit

FIXTURES = ROOT / "tests/integration/legacy/fixtures"
PHASE7_CONSTANT = "the constant of your phase 7"


def phase7_url(url: str) -> bytes:
    """What phase 7 made of a URL: AES-256-CBC under SHA-256 of its constant, without a nonce."""
    octets = url.encode()
    octets += bytes([16 - len(octets) % 16]) * (16 - len(octets) % 16)
    key = hashlib.sha256(PHASE7_CONSTANT.encode()).digest()
    cipher = Cipher(algorithms.AES256(key), modes.CBC(bytes(16))).encryptor()
    return cipher.update(octets) + cipher.finalize()


@pytest.fixture(scope="module")
def crypto_server(postgres_bin):
    """A server with pgcrypto, as phase 7 needs it: the one that the tests run on, or one of the machine's."""
    folders = (
        [postgres_bin] if postgres_bin else sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    )
    for folder in folders:
        share = subprocess.run(
            [folder / "pg_config", "--sharedir"], capture_output=True, text=True, check=False
        ).stdout.strip()
        if (Path(share) / "extension/pgcrypto.control").exists():
            with embedded_postgres(settings={"fsync": "off"}, bin_dir=folder) as running:
                yield running
            return
    pytest.skip("no PostgreSQL of this machine has pgcrypto")


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A TLS receiver that takes everything, in a thread of its own."""
    opened: queue.Queue[tuple[Receiver, trio.lowlevel.TrioToken, trio.CancelScope]] = queue.Queue()

    async def serve() -> None:
        async with open_receiver() as receiver:
            with trio.CancelScope() as scope:
                opened.put((receiver, trio.lowlevel.current_trio_token(), scope))
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(serve,))
    thread.start()
    receiver, token, scope = opened.get(timeout=SECONDS_MAX)
    yield receiver
    token.run_sync_soon(scope.cancel)
    thread.join(SECONDS_MAX)


def test_a_database_of_phase_8_is_brought_along_as_its_page_says(own_home, crypto_server, receiver):
    dsn = crypto_server.dsn_for("pggit").reveal()
    with psycopg.connect(crypto_server.dsn.reveal(), autocommit=True) as admin:
        admin.execute("CREATE DATABASE pggit")
        admin.execute("ALTER DATABASE pggit SET timezone = 'America/St_Johns'")
    with psycopg.connect(dsn, autocommit=True) as old:
        old.execute("CREATE EXTENSION pgcrypto")
        for name in ("phase7", "week1", "week2", "rows", "rows2", "addons"):
            for statement in split_statements((FIXTURES / f"{name}.sql").read_text()):
                old.execute(statement.text)
        old.execute(
            "INSERT INTO pggit.alert_notification_webhooks (webhook_id, webhook_type, name, webhook_url_encrypted)"
            " VALUES (100, 'slack', 'ops', %s)",
            (phase7_url(receiver.url("/alerts")),),
        )
    replaced = {
        "8443": str(receiver.port),
        "postgresql://owner@db.example.com/pggit": dsn,
        "/usr/lib/postgresql/15/bin": str(crypto_server.bin_dir),
    }
    stage = Stage(own_home.folder, replaced, sql='psql "$PGGIT_REACTOR_DATABASE_URL"')
    stage.environ |= {
        "PATH": f"{Path(sys.executable).parent}:{crypto_server.bin_dir}:{os.environ['PATH']}",
        "PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": "127.0.0.0/8:*",
        "SSL_CERT_FILE": str(receiver.ca_file),
    }

    play(DOCS / "migrate-from-pggit.md", stage)
    arrived = {(request.path, request.body) for request in receiver.requests}
    assert arrived >= {
        ("/alerts/new", b'{"type": "regression", "z_score": 3.10}'),
        ("/other", b"null"),
        ("/other", b'{"operation": "check"}'),
    }
    assert len(receiver.requests) == 4  # and the test event


@pytest.mark.parametrize(
    ("markdown", "complaint"),
    [
        ("```sh\nfalse\n```\n", "false\n"),
        ("<!-- ends with: 3 -->\n```sh\ntrue\n```\n", "true\n"),
        ("```sh\necho one\n```\n\n```text\ntwo\n```\n", r"it said:\s+one"),
        ("```sql\nSELECT 1 / 0;\n```\n", "division by zero"),
        ("```python\nraise SystemExit(4)\n```\n", "SystemExit"),
        ("```ruby\nputs 1\n```\n", "ruby"),
    ],
)
def test_a_page_that_is_not_true_is_seen(tmp_path, empty_dsn, markdown, complaint):
    page = tmp_path / "page.md"
    page.write_text(markdown)
    stage = Stage(tmp_path, {}, sql='psql "$PGGIT_REACTOR_DATABASE_URL"')
    stage.environ["PGGIT_REACTOR_DATABASE_URL"] = empty_dsn

    with pytest.raises(AssertionError, match=complaint):
        play(page, stage)


def test_the_shell_of_a_page_keeps_folder_and_variables(tmp_path):
    page = tmp_path / "page.md"
    first = "```sh\nmkdir inner && cd inner\nexport NAME='a b'\n```\n"
    second = '```sh\necho "$NAME in $(basename $PWD)"\n```\n\n```text\na b in ...er\n```\n'
    page.write_text(f"{first}\nText.\n\n{second}")

    play(page, Stage(tmp_path, {}, sql=""))


def test_no_page_has_a_block_that_is_left_out_without_a_reason():
    reasons = [
        mark
        for path in DOCS.glob("*.md")
        for block in blocks_of(path.read_text())
        for mark in block.marks
        if mark.startswith("not run")
    ]
    assert all(re.fullmatch("not run: .{10,}", reason) for reason in reasons)


# -- the page about receivers


def checks_of_the_page() -> list[Block]:
    """Return the programs of the page that look at one request."""
    found = [
        block
        for block in blocks_of((DOCS / "receivers.md").read_text())
        if block.language in LANGUAGES and "headers" in block.text and "body" in block.text
    ]
    return [block for block in found if "sign(" not in block.text]


def known_request(*, age: int = 0, secret: str = SECRET) -> tuple[bytes, dict[str, str]]:
    body = b'{"alert": "replica lag", "seconds": 42}'
    return body, sign(body, id="an-id", timestamp=int(time.time()) - age, secrets=[secret])


FAULTS = {
    "body": lambda: (known_request()[0] + b" ", known_request()[1]),
    "secret": lambda: known_request(secret=new_secret(bytes(32))),
    "age": lambda: known_request(age=310),
    "future": lambda: known_request(age=-310),
    "id": lambda: (
        known_request()[0],
        known_request()[1] | dict.fromkeys(("webhook-id", "X-pgGit-Delivery-ID"), "x"),
    ),
    "none": known_request,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_check_of_the_page_takes_what_is_ours_and_nothing_else(tmp_path, fault):
    stage = Stage(tmp_path, {}, sql="")
    stage.environ["WEBHOOK_SECRET"] = SECRET
    body, headers = FAULTS[fault]()
    (stage.work / "body").write_bytes(body)
    (stage.work / "headers").write_text("".join(f"{name}: {value}\n" for name, value in headers.items()))
    checks = [
        block for block in checks_of_the_page() if block.language != "javascript" or shutil.which("node")
    ]
    taken = [is_taken(stage, block) for block in checks]

    assert len(checks) >= 4
    assert taken == [fault == "none"] * len(checks)


def is_taken(stage: Stage, block: Block) -> bool:
    try:
        stage.run(block)
    except AssertionError:
        return False
    return True


async def test_the_headers_that_the_page_names_are_those_that_are_sent(reactor_database):
    (shown,) = re.findall(
        r"^\| header \| value \|\n.*?\n(.*?)\n\n",
        (DOCS / "receivers.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    names = {
        name.lower() for line in shown.splitlines() for name in re.findall(r"`([\w-]+)`", line.split("|")[1])
    }
    async with open_receiver() as receiver:
        rig = Rig(database=reactor_database, receiver=receiver)
        webhook_id = await rig.add_webhook()
        traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
        query = "SELECT pggit.enqueue(%s, '{}', p_event_type => 'a.b', p_traceparent => %s)"
        async with rig.worker():
            await reactor_database.execute(query, (webhook_id, traceparent))
            with trio.fail_after(SECONDS_MAX):
                (request,) = await receiver.wait_for(1)

    assert {name.lower() for name, _ in request.headers} == names
