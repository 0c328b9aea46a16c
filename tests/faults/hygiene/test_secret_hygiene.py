"""Everything once, at the most talkative level, with every secret marked: nothing that comes out holds a mark.

What comes out: what each command and worker prints, errors and their tracebacks, metrics and probes, every column of
every table but those that are named for holding it, every statement and parameter that reaches the server, its own
log, and what other users of the machine see of our processes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import signal
import traceback
from pathlib import Path

import attrs
import httpx
import pytest
import trio
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from pggit_reactor.cli.webhook_keys import parse_change
from pggit_reactor.config.load import load_settings
from pggit_reactor.core.conformance_cases import Material, delivery_case
from pggit_reactor.core.model import ClaimedDelivery
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.url_policy import EgressRules, parse_target
from pggit_reactor.observability.redaction import mask_value
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.receiver import (
    Behaviour,
    Certificate,
    Greeting,
    answer,
    cut,
    echo,
    hang,
    open_receiver,
    raw,
    redirect,
)
from pggit_reactor.testing.senders import make_webhook


def ends(marked) -> dict[str, Behaviour]:
    """Every way in which an answer can end a delivery."""
    path, query = marked.path, marked.query
    return {
        "good": answer(200),
        "refusing": echo(400),
        "unauthorised": echo(401),
        "failing": echo(500),
        "throttling": answer(429, [("Retry-After", "0")], f"{path} {query}".encode()),
        "gone": echo(410),
        "redirecting": redirect(marked.url("https://elsewhere.example")),
        "hanging": hang(),
        "resetting": cut(),
        "garbage": raw(f"GARBAGE {path}\r\n\r\n".encode()),
        "bad-field": raw(f"HTTP/1.1 200 OK\r\n{path} {query}\r\n\r\n".encode()),
        "cut-excerpt": answer(400, body=b"x" * 1010 + f"/{path}".encode()),
    }


def phase7_url(marked, url: str) -> bytes:
    """Return *url* as phase 7 kept it."""
    octets = url.encode()
    octets += bytes([16 - len(octets) % 16]) * (16 - len(octets) % 16)
    key = hashlib.sha256(marked.phase7_key.encode()).digest()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(bytes(16))).encryptor()
    return encryptor.update(octets) + encryptor.finalize()


def prepare_phase7(place, url: str) -> None:
    with place.producer() as connection:
        connection.execute("""
            CREATE TABLE pggit.alert_notification_webhooks (
                webhook_id bigserial PRIMARY KEY, webhook_type text NOT NULL, name text NOT NULL,
                channel_or_recipient text, webhook_url_encrypted bytea, webhook_url_iv bytea,
                enabled boolean DEFAULT true)
        """)
        connection.execute(
            "INSERT INTO pggit.alert_notification_webhooks (webhook_id, webhook_type, name, webhook_url_encrypted)"
            " VALUES (9001, 'slack', 'old', %s), (9002, 'slack', 'plain', %s), (9003, 'slack', 'broken', %s)",
            [
                phase7_url(place.marked, url),
                phase7_url(place.marked, url.replace("https:", "http:")),
                os.urandom(32),
            ],
        )


async def register_everything(place, receiver, others) -> list[str]:
    """Register a webhook for each end, by command; return their ids."""
    given = ("--secret-file", "secret", "header.X-Api-Key=@header")
    ids = []
    for name, behaviour in ends(place.marked).items():
        path = f"/{name}"
        receiver.script(f"{path}/{place.marked.path}", *[behaviour] * 2)
        said = await place.command(
            "webhook", "add", place.marked.url(receiver.url(path)), "--name", name, *given
        )
        ids.append(said.split()[-1])
    for name, other in others.items():
        said = await place.command(
            "webhook", "add", place.marked.url(other.url("/x")), "--name", name, *given
        )
        ids.append(said.split()[-1])
    plain = ("--secret-file", "-", "label.team=db")
    url = place.marked.url(receiver.url("/plain"))
    ids.append(
        (await place.command("webhook", "add", url, *plain, stdin=place.marked.plain_secret)).split()[-1]
    )
    unresolved = place.marked.url("https://no-such-name.invalid")
    ids.append((await place.command("webhook", "add", unresolved, *given)).split()[-1])
    return ids


async def refuse_everything(place, receiver) -> None:
    """Let commands fail in the ways in which an error could quote what it was given."""
    marked = place.marked
    for url in (
        marked.url("https://10.0.0.1"),
        marked.url("http://receiver.example"),
        f"https://user:{marked.path}@receiver.example/",
        marked.url("https://10.0.0.1:22"),
        marked.url("https://receiver.example") + f"#{marked.query}",
        marked.url("https://receiver.example") + "\u00fc",
    ):
        await place.command("webhook", "add", url, status=3)
        await place.command("url", "check", url, status=3)
    await place.command("webhook", "add", marked.url(receiver.url()), "--secret-file", "header", status=2)
    bad_header = f"header.Host={marked.header}"
    await place.command("webhook", "add", marked.url(receiver.url()), bad_header, status=2)
    place.write("lines", f"{marked.header}\r\nX-Other: {marked.header}")
    await place.command("webhook", "add", marked.url(receiver.url()), "header.X-A=@lines", status=2)
    lines = f'{{"url": "{marked.url("https://10.0.0.1")}"}}\n{{"url": "{marked.url("https://a")}\n'
    await place.command("url", "check", "--jsonl", stdin=lines)


async def start_wrongly(place) -> None:
    """Start with wrong keys and a database that cannot be reached."""
    marked = place.marked
    wrong = str(place.folder / "wrong")
    await place.process("worker", status=2, MASTER_KEY_FILE=wrong)
    await place.command("key", "status", status=2, MASTER_KEY_FILE=wrong)
    await place.command("doctor", status=3, MASTER_KEY_FILE=wrong)
    await place.process("worker", status=2, MASTER_KEY_FILE="", MASTER_KEY=f"nonsense {marked.passphrase}")
    await place.process("worker", status=2, MASTER_KEY_FILE="")
    unreachable = f"postgresql://keeper:{marked.wrong_password}@127.0.0.1:1/hygiene"
    await place.command("webhook", "list", status=1, DATABASE_URL_FILE="", DATABASE_URL=unreachable)
    refused = place.dsn.replace(marked.password, marked.wrong_password)
    await place.command("webhook", "list", status=1, DATABASE_URL_FILE="", DATABASE_URL=refused)
    for dsn in (
        f"postgresql://keeper:{marked.wrong_password}@host:5432/x?no_such={marked.wrong_password}",
        f"host=localhost password={marked.wrong_password}' bad",
        f"postgresql://keeper:{marked.wrong_password}@[::1/x",
    ):
        await place.command("webhook", "list", status=2, DATABASE_URL_FILE="", DATABASE_URL=dsn)


def queue(place, webhook_ids: list[str]) -> None:
    """Queue for each webhook, and what no sender can send."""
    marked = place.marked
    good = f'{{"X-Token": "{marked.row_header}"}}'
    bad = (
        f'{{"Host": "{marked.row_header}"}}',
        f'["{marked.row_header}"]',
        f'{{"X": "{marked.row_header}\\n"}}',
    )
    rows = [(int(id_), marked.body, good) for id_ in webhook_ids]
    rows += [(int(webhook_ids[0]), marked.body, headers) for headers in bad]
    rows.append((int(webhook_ids[0]), marked.body * 100_000, good))
    rows.append((-77, marked.body, good))  # registered by nobody
    with place.producer() as connection, connection.cursor() as cursor:
        cursor.executemany(
            "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, headers, max_retries)"
            " VALUES (1, %s, to_jsonb(%s::text), %s, 1)",
            rows,
        )
        # One whose registration no key opens.
        cursor.execute(
            "UPDATE pggit.webhook SET sealed_url = %s WHERE webhook_id = %s",
            (b"sealed by nobody", webhook_ids[-1]),
        )


async def until_settled(place, count: int) -> None:
    """Return once all but *count* deliveries have ended."""
    query = "SELECT count(*) FROM pggit.alert_delivery_queue WHERE delivery_status IN ('pending', 'retrying')"
    with trio.fail_after(60), place.producer() as connection:
        while connection.execute(query).fetchone() != (count,):  # noqa: ASYNC110  # no event tells of a row
            await trio.sleep(0.05)


async def reload_and_lose(place, worker) -> None:
    """Reload well and badly; lose connections and a process."""
    for content, event in (
        (place.marked.key_lines, "reloaded"),
        (place.marked.wrong_key_line, "reload_refused"),
        (f"malformed {place.marked.passphrase}", "reload_refused"),
        (place.marked.key_lines, "reloaded"),
    ):
        before = len(worker.events(event))
        place.write("keys", content)
        worker.process.send_signal(signal.SIGHUP)
        await worker.event(event, before + 2)
    with place.producer() as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'pggit-reactor %'"
        )
    await worker.event("database_reconnected")
    os.kill(worker.family()[1], signal.SIGKILL)
    await worker.event("worker_process_ended")
    await worker.event("worker_started", 3)


def seen_from_outside(place, worker) -> dict[str, str]:
    """What the machine and the database show of running workers."""
    seen = {}
    for pid in worker.family():
        for name in ("cmdline", "environ", "comm"):
            seen[f"/proc of {pid}: {name}"] = (
                Path(f"/proc/{pid}/{name}").read_bytes().decode("utf-8", "replace")
            )
    with place.producer() as connection:
        activity = connection.execute(
            "SELECT string_agg(a::text, E'\\n') FROM pg_stat_activity AS a WHERE pid <> pg_backend_pid()"
        ).fetchone()
    assert activity is not None
    return seen | {"pg_stat_activity": activity[0]}


async def probes(worker) -> dict[str, str]:
    port = (await worker.event("http_listening"))[0]["port"]
    async with httpx.AsyncClient() as client:
        paths = ("/metrics", "/health", "/ready", "/nothing")
        return {path: (await client.get(f"http://127.0.0.1:{port}{path}")).text for path in paths}


async def change_everything(place, receiver) -> None:
    """Look at webhooks and deliveries, and change them, by every command that does."""
    marked = place.marked
    await place.command("webhook", "set", "good", f"url={marked.url(receiver.url('/good'))}", "concurrency=4")
    await place.command("webhook", "set", "good", "header.X-Api-Key=@header", "header.X-Other=@plain")
    await place.command("webhook", "test", "good", "--json")
    await place.command("webhook", "test", "refusing", status=1)
    await place.command("webhook", "test", "broken", status=1)
    for words in (("pause", "good"), ("resume", "good"), ("disable", "good"), ("enable", "good")):
        await place.command("webhook", *words)
    for words in (("webhook", "list"), ("webhook", "show", "good"), ("delivery", "list"), ("route", "list")):
        await place.command(*words)
        await place.command(*words, "--json")
    await place.command("webhook", "import-phase7", "--phase7-key-file", "phase7", status=3)
    await place.command("route", "add", "good", "--severity", "CRITICAL")
    await place.command("route", "explain", "--severity", "CRITICAL")
    with place.producer() as connection:
        rows = connection.execute("SELECT delivery_id FROM pggit.alert_delivery_queue ORDER BY 1").fetchall()
    for (delivery_id,) in rows:
        await place.command("delivery", "explain", str(delivery_id))
    for words in (("show",), ("explain",), ("requeue",), ("cancel",)):
        await place.command("delivery", *words, str(rows[-1][0]))
    await place.command("delivery", "show", str(rows[1][0]), "--json")
    await place.command("webhook", "remove", "garbage")
    await place.command("webhook", "rotate-secret", "good", "--secret-file", "-", stdin=marked.plain_secret)
    await place.command("webhook", "rotate-secret", "good", "--finish")
    await place.command("webhook", "reset", "refusing")
    await place.command("key", "rotate")
    for words in (("audit", "list"), ("audit", "verify"), ("audit", "export"), ("queue", "stats")):
        await place.command(*words)
    await place.command("erase", "--webhook", "1")
    await place.command("queue", "prune", "--delivered", "1d")


async def examine(place, receiver) -> None:
    for name in ("good", "refusing"):
        url = place.marked.url(receiver.url(f"/{name}"))
        await place.command("receiver", "check", url, "--secret-file", "secret", status=3)


def assert_nothing_is_given_away(place, places: dict[str, str]) -> None:
    places |= {**place.said, **place.tables(), "the server's log": place.server_log()}

    assert "INSERT INTO" in places["the server's log"], "the server kept no statements, so it proves nothing"
    assert place.marked.marks().found_in_places(places) == []


async def test_commands_that_fail_at_debug_level_give_nothing_away(place):
    async with open_receiver() as receiver:
        place.ca_file = receiver.ca_file
        await place.command("migrate")
        await place.command("webhook", "add", place.marked.url(receiver.url()), "--secret-file", "secret")
        await refuse_everything(place, receiver)
        await start_wrongly(place)

    assert "Traceback" in "".join(place.said.values()), "no error showed a traceback, so it proves nothing"
    assert_nothing_is_given_away(place, {})


async def test_a_whole_life_at_debug_level_gives_nothing_away(place, start_worker):
    async with (
        open_receiver() as receiver,
        open_receiver(authority=receiver.authority) as broken,
        open_receiver(authority=receiver.authority, names=("elsewhere.example",)) as misnamed,
        open_receiver(authority=receiver.authority, certificate=Certificate.UNTRUSTED) as untrusted,
    ):
        place.ca_file = receiver.ca_file
        broken.greeting = Greeting.REFUSE_HANDSHAKE
        await place.command("migrate", "--check", status=3)
        await place.command("migrate")
        await place.command("key", "status", "--json")
        prepare_phase7(place, place.marked.url(receiver.url("/phase7")))
        others = {"broken": broken, "misnamed": misnamed, "untrusted": untrusted}
        queue(place, await register_everything(place, receiver, others))
        worker = start_worker("--processes", "2")
        await worker.event("worker_started", 2)
        await until_settled(place, 2)  # what nobody registered, and what no key opens
        gathered = await probes(worker) | seen_from_outside(place, worker)
        await change_everything(place, receiver)
        await examine(place, receiver)
        await place.command("doctor", status=3)
        await place.command("doctor", "--json", status=3)
        await reload_and_lose(place, worker)
        assert await worker.end() == 0

    assert worker.events("delivery_settled")
    assert worker.events("webhook_unopenable")
    columns = place.tables()
    assert len(columns["pggit.alert_delivery_log.event_details"]) > 100
    assert "HTTP 400" in columns["pggit.alert_delivery_queue.last_error"]
    assert_nothing_is_given_away(place, {**gathered, "what the worker said": worker.said})


# -- values that a program could print, send or keep


def secretive(marked) -> dict[str, object]:
    """Return one of each kind of value that holds a secret, and the errors that speak of one."""
    environ = {
        "PGGIT_REACTOR_DATABASE_URL": f"postgresql://keeper:{marked.password}@localhost/hygiene",
        "PGGIT_REACTOR_MASTER_KEY": marked.key_lines.replace("\n", ","),
    }
    keyring = Keyring.parse(Secret(marked.key_lines))
    webhook = make_webhook(
        marked.url("https://a.example"),
        secrets=(Secret(marked.signing_secret), Secret(marked.plain_secret)),
        headers=(("X-Api-Key", marked.header),),
    )
    material = Material(
        secrets=webhook.secrets,
        strangers=webhook.secrets,
        now=1,
        delivery_id="an-id",
        other_id="another",
    )
    change = parse_change([f"url={marked.url('https://a.example')}", f"header.X-Api-Key={marked.header}"])
    return {
        "a secret text": Secret(marked.plain_secret),
        "secret octets": Secret(marked.master_key),
        "settings": load_settings(environ=environ).settings,
        "a key ring": keyring,
        "a sealer": Sealer(keyring),
        "a webhook": webhook,
        "a target": parse_target(marked.url("https://93.184.215.14"), EgressRules.parse()),
        "a change": change,
        "an examination": (material, delivery_case(), delivery_case().compose(material)),
        "a delivery": claimed(
            body=marked.body.encode(), headers_json=f'{{"X-Token": "{marked.row_header}"}}'
        ),
    }


def claimed(**changes: object) -> ClaimedDelivery:
    values = {field.name: 1 for field in attrs.fields(ClaimedDelivery)} | {"uid": "an-id", "event_type": None}
    return ClaimedDelivery(**(values | changes))


WRITERS = {
    "repr": repr,
    "str": str,
    "format": "{}".format,
    "percent": "%s %r".__mod__,
    "json": lambda value: json.dumps(value, default=repr),
    "the log": lambda value: json.dumps(mask_value({"what": value, "inside": [value]})),
    "a pickle": lambda value: pickle.dumps(value).decode("latin-1"),
    "a deep copy": lambda value: repr(copy.deepcopy(value)),
    "a traceback with locals": lambda value: "".join(
        traceback.TracebackException.from_exception(raised_beside(value), capture_locals=True).format()
    ),
}


def raised_beside(value: object) -> Exception:
    """Return an error with a frame that holds *value*."""
    try:
        raise RuntimeError("something else")
    except RuntimeError as error:
        return error


PICKLED_WITH_WHAT_THEY_HOLD = {"a delivery"}
"""Its body is an alert, which travels; nothing pickles it."""


@pytest.mark.parametrize("writer", WRITERS)
def test_no_value_shows_its_secrets_by_accident(writer, marked):
    for kind, value in secretive(marked).items():
        if writer == "a pickle" and kind in PICKLED_WITH_WHAT_THEY_HOLD:
            continue
        try:
            written = WRITERS[writer]((value, value) if writer == "percent" else value)
        except TypeError as error:
            assert writer in {"a pickle", "a deep copy"}
            written = str(error)  # refused, which is as good

        assert marked.marks().found_in(written) == [], f"{writer} of {kind}"
