"""`key rotate` without workers: what it writes, what it refuses, and that it can be stopped anywhere."""

from __future__ import annotations

import os

import psycopg
import pytest
import trio

from pggit_reactor.core.resealing import Progress
from pggit_reactor.core.secret import Secret
from pggit_reactor.db.keys import ensure_keys
from pggit_reactor.db.registry import By
from pggit_reactor.db.resealing import BATCH_ROWS, TABLES, Resealing, exclusive_rotation, retire_keys
from pggit_reactor.errors import DatabaseError, RotationError
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Place, Sealer, sealed_key_id

BY = By(name="ann", host="desk")
OLD = f"old:base64:{'A' * 43}="
NEW = f"new:base64:{'B' * 42}A="
SOMEBODY_WAITS = (
    "SELECT EXISTS (SELECT FROM pg_stat_activity"
    " WHERE wait_event_type = 'Lock' AND datname = current_database())"
)
WORDS = "words:passphrase:correct horse battery staple"


def ring(*lines: str) -> Keyring:
    return Keyring.parse(Secret("\n".join(lines)))


class Registry:
    """Sealed rows of every kind, and what is inside."""

    def __init__(self, database) -> None:
        self.database = database
        self.plain: dict[Place, bytes] = {}

    async def fill(self, webhooks: int, *, key: str = OLD) -> None:
        sealer = Sealer(ring(key))
        connection = await self.database.connect()
        await ensure_keys(connection, sealer.keyring, by="test", must_register=True)
        for webhook_id in range(1, webhooks + 1):
            sealed: dict[str, bytes] = {}
            for table in TABLES:
                row = (webhook_id,) if table.name == "webhook" else (webhook_id, 1)
                for column in table.columns:
                    place = table.place(column, row)
                    self.plain[place] = f"{column} of {row}".encode()
                    sealed[column] = sealer.seal(self.plain[place], place=place)
            await self.database.execute(
                "INSERT INTO pggit.webhook (webhook_id, name, url_origin, sealed_url, sealed_headers, sealed_ca,"
                " sealed_client_certificate) VALUES (%(webhook_id)s, %(webhook_id)s::text, 'https://a.example',"
                " %(sealed_url)s, %(sealed_headers)s, %(sealed_ca)s, %(sealed_client_certificate)s)",
                {"webhook_id": webhook_id, **sealed},
            )
            await self.database.execute(
                "INSERT INTO pggit.webhook_secret (webhook_id, version, sealed_secret)"
                " VALUES (%(webhook_id)s, 1, %(sealed_secret)s)",
                {"webhook_id": webhook_id, **sealed},
            )

    async def sealed(self) -> dict[Place, bytes]:
        found = {}
        for table in TABLES:
            columns = ", ".join((*table.key, *table.columns))
            for row in await self.database.fetch(f"SELECT {columns} FROM pggit.{table.name}"):
                for column, value in zip(table.columns, row[len(table.key) :], strict=True):
                    if value is not None:
                        found[table.place(column, row[: len(table.key)])] = bytes(value)
        return found

    async def key_ids(self) -> set[str]:
        return {sealed_key_id(value) for value in (await self.sealed()).values()}

    async def assert_opens_with(self, *lines: str) -> None:
        sealer = Sealer(ring(*lines))
        assert {place: sealer.open(value, place=place) for place, value in (await self.sealed()).items()} == (
            self.plain
        )

    async def rotation(self, *lines: str, **options) -> Resealing:
        connection, guard = await self.database.connect(), await self.database.connect()
        sealer = Sealer(ring(*lines))
        await ensure_keys(connection, sealer.keyring, by="test", must_register=True)
        return Resealing(connection=connection, guard=guard, sealer=sealer, by=BY, rate=1e9, **options)


@pytest.fixture
def registry(reactor_database) -> Registry:
    return Registry(reactor_database)


async def test_every_sealed_column_is_known_to_the_rotation(reactor_database):
    columns = await reactor_database.fetch(
        "SELECT c.relname::text, a.attname::text FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid"
        " WHERE c.relnamespace = 'pggit'::regnamespace AND c.relkind IN ('r', 'p') AND a.attname LIKE 'sealed%%'"
        " AND a.atttypid = 'bytea'::regtype AND NOT a.attisdropped"
    )

    assert set(columns) == {(table.name, column) for table in TABLES for column in table.columns}


async def test_everything_is_sealed_anew_and_nothing_else_changes(registry, reactor_database):
    await registry.fill(BATCH_ROWS + 20)
    await reactor_database.execute("UPDATE pggit.webhook SET sealed_ca = NULL WHERE webhook_id = 3")
    del registry.plain[TABLES[0].place("sealed_ca", (3,))]
    before = await reactor_database.fetch(
        "SELECT webhook_id, revision, updated_at FROM pggit.webhook ORDER BY 1"
    )
    progress: list[Progress] = []
    done = await (await registry.rotation(NEW, OLD, on_progress=progress.append)).run()

    assert (done.done, done.left, done.unopened) == (len(registry.plain), 0, ())
    assert await registry.key_ids() == {"new"}
    await registry.assert_opens_with(NEW)
    assert before == await reactor_database.fetch(
        "SELECT webhook_id, revision, updated_at FROM pggit.webhook ORDER BY 1"
    )
    assert [step.done for step in progress] == sorted(step.done for step in progress)
    assert (progress[-1].done, progress[-1].left_seconds) == (len(registry.plain), 0.0)


async def test_a_stopped_rotation_is_gone_on_with(registry):
    await registry.fill(BATCH_ROWS * 2)

    def stop(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await (await registry.rotation(NEW, OLD, on_progress=stop)).run()
    assert await registry.key_ids() == {"old", "new"}
    await registry.assert_opens_with(OLD, NEW)
    done = await (await registry.rotation(NEW, OLD)).run()

    assert done.done == len(registry.plain) - 4 * BATCH_ROWS
    await registry.assert_opens_with(NEW)


async def test_no_more_values_a_second_are_sealed_than_the_rate_says(registry):
    await registry.fill(BATCH_ROWS + 50)
    time = [0.0]

    async def sleep(seconds: float) -> None:
        await trio.lowlevel.checkpoint()
        time[0] += seconds

    run = await registry.rotation(NEW, OLD, sleep=sleep, now=lambda: time[0])
    run.rate = 50.0
    done = await run.run()

    assert done.done == len(registry.plain) == 5 * (BATCH_ROWS + 50)
    assert done.seconds == pytest.approx(done.done / 50)


async def test_what_is_changed_meanwhile_is_not_undone(registry, reactor_database):
    await registry.fill(3)
    run = await registry.rotation(NEW, OLD)
    place = TABLES[0].place("sealed_url", (2,))
    changed = Sealer(ring(OLD)).seal(b"changed", place=place)
    left = ["once"]

    def draw(octets: int) -> bytes:
        """The nonce is drawn between the reading of a value and its writing: then somebody else is quicker."""
        if left:
            left.clear()
            with psycopg.connect(reactor_database.dsn.reveal(), autocommit=True) as other:
                other.execute("UPDATE pggit.webhook SET sealed_url = %s WHERE webhook_id = 2", (changed,))
        return os.urandom(octets)

    run.sealer = Sealer(run.sealer.keyring, random_octets=draw)
    done = await run.run()
    registry.plain[place] = b"changed"

    assert (done.done, done.left) == (len(registry.plain), 0)
    await registry.assert_opens_with(NEW)


async def test_a_row_that_somebody_holds_is_left_and_waited_for_by_nobody(registry, reactor_database):
    await registry.fill(3)
    holder = await reactor_database.connect()
    async with holder.transaction():
        await holder.execute("SELECT FROM pggit.webhook WHERE webhook_id = 2 FOR UPDATE")
        with trio.fail_after(10):
            held = await (await registry.rotation(NEW, OLD)).run()
    done = await (await registry.rotation(NEW, OLD)).run()

    assert (held.left, done.done, done.left) == (4, 4, 0)


async def test_what_does_not_open_is_named_and_keeps_its_key_from_retiring(registry, reactor_database):
    await registry.fill(3)
    await reactor_database.execute(
        "UPDATE pggit.webhook AS w SET sealed_url = o.sealed_url FROM pggit.webhook AS o"
        " WHERE w.webhook_id = 2 AND o.webhook_id = 1"
    )
    run = await registry.rotation(NEW, OLD)
    done = await run.run()

    assert (done.left, done.done) == (1, len(registry.plain) - 1)
    (complaint,) = done.unopened
    assert "pggit.webhook.sealed_url of row 2" in complaint
    assert await retire_keys(run.connection, active_id="new", by=BY) == ()


async def test_values_of_an_unknown_form_keep_every_key_from_retiring(registry, reactor_database):
    await registry.fill(1)
    await reactor_database.execute("UPDATE pggit.webhook SET sealed_ca = '\\xff00'")
    run = await registry.rotation(NEW, OLD)
    await run.run()

    assert await retire_keys(run.connection, active_id="new", by=BY) == ()


async def test_a_passphrase_takes_over_from_a_raw_key_and_back(registry):
    await registry.fill(2)
    await (await registry.rotation(WORDS, OLD)).run()
    assert await registry.key_ids() == {"words"}
    await (await registry.rotation(NEW, WORDS, OLD)).run()

    await registry.assert_opens_with(NEW)


async def test_two_rotations_exclude_each_other(reactor_database):
    one, other = await reactor_database.connect(), await reactor_database.connect()
    async with exclusive_rotation(one):
        with pytest.raises(RotationError, match="another key rotation is running"):
            async with exclusive_rotation(other):
                pass

    async with exclusive_rotation(other):
        pass


async def test_a_retired_key_seals_nothing_more_whoever_tries(registry, reactor_database):
    await registry.fill(1)
    run = await registry.rotation(NEW, OLD)
    await run.run()
    assert await retire_keys(run.connection, active_id="new", by=BY) == ("old",)

    late = Sealer(ring(OLD)).seal(b"late", place=TABLES[1].place("sealed_secret", (1, 1)))
    with pytest.raises(DatabaseError, match="master key old is retired"):
        await reactor_database.execute("UPDATE pggit.webhook_secret SET sealed_secret = %s", (late,))
    assert await reactor_database.fetch("SELECT key_id, retired_by FROM pggit.key_check ORDER BY 1") == [
        ("new", None),
        ("old", "ann"),
    ]


async def test_retiring_waits_for_who_seals_with_the_key_and_then_lets_it_be(registry, reactor_database):
    await registry.fill(1)
    run = await registry.rotation(NEW, OLD)
    await run.run()
    sealer, retired = await reactor_database.connect(), []
    place = TABLES[1].place("sealed_secret", (1, 1))

    async def retire() -> None:
        retired.extend(await retire_keys(run.connection, active_id="new", by=BY))

    async with trio.open_nursery() as nursery, sealer.transaction():
        await sealer.execute(
            "UPDATE pggit.webhook_secret SET sealed_secret = %s",
            (Sealer(ring(OLD)).seal(b"late", place=place),),
        )
        nursery.start_soon(retire)
        with trio.fail_after(20):
            while not await reactor_database.fetch_value(SOMEBODY_WAITS):  # noqa: ASYNC110  # a state of the server
                await trio.sleep(0.02)

    assert retired == []


def rotate(commands, *arguments: str, keys: str, status: int = 0):
    result = commands("key", "rotate", *arguments, MASTER_KEY=keys)
    assert result.status == status, result
    return result


def test_the_command_tells_what_it_did_and_who_did_it(commands, hook, database: psycopg.Connection):
    old = commands.environ["PGGIT_REACTOR_MASTER_KEY"]
    commands.ok("webhook", "add", hook, "header.X-Token=abc")
    result = rotate(commands, "--retire", keys=f"{NEW}\n{old}")
    commands.ok("webhook", "show", "1", "--reveal", MASTER_KEY=NEW)

    assert "sealed 3 values anew with 'new'" in result.out
    assert "retired 'test'" in result.out
    assert "3 of 3 values (100%), 0 s left" in result.err
    history = database.execute(
        "SELECT operation, key_id, done_by IS NOT NULL, details ->> 'state' FROM pggit.rotation_history"
        " WHERE key_id IS NOT NULL ORDER BY audit_id"
    ).fetchall()
    assert history == [
        ("key_added", "test", True, None),
        ("key_added", "new", True, None),
        ("key_rotated", "new", True, "begun"),
        ("key_rotated", "new", True, "finished"),
        ("key_retired", "test", True, None),
    ]


def test_a_rotation_with_nothing_to_do_says_so(commands, hook):
    commands.ok("webhook", "add", hook)
    result = rotate(commands, "--json", keys=commands.environ["PGGIT_REACTOR_MASTER_KEY"])

    assert (result.json["done"], result.json["left"], result.json["retired"]) == (0, 0, [])


def test_a_rotation_without_the_old_key_is_refused(commands, hook):
    commands.ok("webhook", "add", hook)
    result = rotate(commands, keys=NEW, status=2)

    assert "'test' is missing" in result.err


def test_who_still_puts_a_retired_key_first_is_told(commands, hook):
    old = commands.environ["PGGIT_REACTOR_MASTER_KEY"]
    commands.ok("webhook", "add", hook)
    rotate(commands, "--retire", keys=f"{NEW}\n{old}")
    result = commands("webhook", "add", hook, MASTER_KEY=f"{old}\n{NEW}")

    assert result.status == 2
    assert "master key 'test' is retired" in result.err
    assert "'new'" in result.err


@pytest.mark.parametrize(
    ("key_ids", "named"), [("'{other}'", "is not in the key file of w1 (h, pid 7)"), ("NULL", "does not say")]
)
def test_a_worker_without_the_new_key_stops_it_before_it_begins(commands, hook, database, key_ids, named):
    old = commands.environ["PGGIT_REACTOR_MASTER_KEY"]
    commands.ok("webhook", "add", hook)
    database.execute(
        "INSERT INTO pggit.reactor_worker (instance, worker_id, version, host, pid, capacity, key_ids)"
        f" VALUES ('i', 'w1', '1', 'h', 7, 1, {key_ids})"
    )
    result = rotate(commands, keys=f"{NEW}\n{old}", status=1)

    assert named in result.err
    assert database.execute("SELECT key_id FROM pggit.key_check").fetchall() == [("test",)]
    rotate(commands, "--force", keys=f"{NEW}\n{old}")


def test_a_worker_that_is_long_silent_stops_nobody(commands, hook, database):
    old = commands.environ["PGGIT_REACTOR_MASTER_KEY"]
    commands.ok("webhook", "add", hook)
    database.execute(
        "INSERT INTO pggit.reactor_worker (instance, worker_id, version, host, pid, capacity, heartbeat_at)"
        " VALUES ('i', 'w1', '1', 'h', 7, 1, now() - interval '1 minute')"
    )

    rotate(commands, keys=f"{NEW}\n{old}")
