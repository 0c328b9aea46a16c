"""A run at the most talkative level, through every kind of end: what it prints and writes gives nothing away."""

from __future__ import annotations

import signal

import httpx

from pggit_reactor.core.secret import Secret
from pggit_reactor.db.webhooks import headers_place
from pggit_reactor.security.keyring import Keyring
from pggit_reactor.security.sealing import Sealer
from pggit_reactor.testing.receiver import (
    Greeting,
    answer,
    cut,
    echo,
    hang,
    open_receiver,
    raw,
    redirect,
)
from pggit_reactor.testing.rig import MASTER_KEY, SIGNING_SECRET

PATH = "marked-path-4711"
QUERY = "marked-query-0815"
BODY = "marked-body-1234"
ROW_HEADER = "marked-row-header-42"
SEALED_HEADER = "marked-sealed-header-43"

WRITTEN = {
    "the log": "SELECT string_agg(g::text, ' ') FROM pggit.alert_delivery_log AS g",
    "the audit": "SELECT string_agg(a::text, ' ') FROM pggit.webhook_audit_log AS a",
    "health": "SELECT string_agg(h::text, ' ') FROM pggit.webhook_health_metrics AS h",
    "the errors of rows": "SELECT string_agg(last_error, ' ') FROM pggit.alert_delivery_queue",
    "the state of webhooks": "SELECT string_agg(concat(name, state_reason, labels), ' ') FROM pggit.webhook",
    "the workers": "SELECT string_agg(w::text, ' ') FROM pggit.reactor_worker AS w",
}


def secrets_of(rig) -> dict[str, str]:
    password = rig.database.dsn.reveal().partition("//")[2].partition("@")[0].partition(":")[2]
    return {
        "path": PATH,
        "query": QUERY,
        "body": BODY,
        "row header": ROW_HEADER,
        "sealed header": SEALED_HEADER,
        "signing secret": SIGNING_SECRET.removeprefix("whsec_"),
        "master key": MASTER_KEY.rpartition(":")[2],
        "database password": password,
    }


async def add_webhook(rig, path: str, **columns: object) -> int:
    webhook_id = await rig.add_webhook(**{"url": rig.receiver.url(f"{path}/{PATH}?token={QUERY}"), **columns})
    sealed = Sealer(Keyring.parse(Secret(MASTER_KEY))).seal(
        f'{{"X-Api-Key": "{SEALED_HEADER}"}}'.encode(), place=headers_place(webhook_id)
    )
    await rig.database.execute(
        "UPDATE pggit.webhook SET sealed_headers = %s WHERE webhook_id = %s", (sealed, webhook_id)
    )
    return webhook_id


async def insert(rig, webhook_id: int, *, headers: str | None = None, body: str = BODY) -> None:
    await rig.database.execute(
        "INSERT INTO pggit.alert_delivery_queue (alert_id, webhook_id, message_body, headers, max_retries)"
        " VALUES (1, %s, to_jsonb(%s::text), %s, 1)",
        (webhook_id, body, headers or f'{{"X-Token": "{ROW_HEADER}"}}'),
    )


ENDS = {
    "good": answer(200),
    "refusing": echo(400),
    "failing": echo(500),
    "gone": echo(410),
    "redirecting": redirect(f"https://elsewhere.example/{PATH}?token={QUERY}"),
    "hanging": hang(),
    "resetting": cut(),
    "garbage": raw(f"GARBAGE {PATH}\r\n\r\n".encode()),
    "bad field": raw(f"HTTP/1.1 200 OK\r\n{PATH} {QUERY}\r\n\r\n".encode()),
}


async def everything_ends(rig, broken) -> None:
    """Bring about each kind of end there is."""
    for name, behaviour in ENDS.items():
        rig.receiver.script(f"/{name}/{PATH}", behaviour, behaviour)
        await insert(rig, await add_webhook(rig, f"/{name}"))
    good = await add_webhook(rig, "/again")
    await insert(rig, good, body=BODY * 100_000)
    for headers in (f'{{"Host": "{ROW_HEADER}"}}', f'["{ROW_HEADER}"]', f'{{"X-A": "{ROW_HEADER}\\n"}}'):
        await insert(rig, good, headers=headers)
    for url in (
        f"https://10.0.0.1/{PATH}?token={QUERY}",
        f"http://receiver.example/{PATH}?token={QUERY}",
        f"https://user:{PATH}@receiver.example/",
        f"https://no-such-name.invalid/{PATH}?token={QUERY}",
        broken.url(f"/{PATH}?token={QUERY}"),
    ):
        await insert(rig, await add_webhook(rig, "/", url=url))
    sealed = await add_webhook(rig, "/sealed")
    await rig.database.execute(
        "UPDATE pggit.webhook SET sealed_url = %s WHERE webhook_id = %s", (PATH.encode(), sealed)
    )
    await insert(rig, sealed)


async def assert_nothing_is_given_away(rig, output: str) -> None:
    places = {"the output": output}
    for name, query in WRITTEN.items():
        places[name] = await rig.database.fetch_value(query)
    for place, text in places.items():
        assert text, f"{place} is empty, so it proves nothing"
        for secret, value in secrets_of(rig).items():
            assert value not in text, f"{place} holds the {secret}"
        assert "v1," not in text, f"{place} holds a signature"
        assert "sha256=" not in text, f"{place} holds a signature"


async def test_a_process_gives_nothing_away(rig):
    async with open_receiver(authority=rig.receiver.authority) as broken:
        broken.greeting = Greeting.REFUSE_HANDSHAKE
        async with rig.process(LOG_LEVEL="debug") as running:
            await everything_ends(rig, broken)
            await rig.until(
                "SELECT count(*) = 1 FROM pggit.alert_delivery_queue WHERE delivery_status IN ('pending', 'retrying')"
            )
            await rig.terminate("settle")
            await rig.terminate("claim")
            await running.event("database_reconnected")
            port = (await running.event("http_listening"))["port"]
            async with httpx.AsyncClient() as client:
                probes = [
                    (await client.get(f"http://127.0.0.1:{port}{path}")).text
                    for path in ("/metrics", "/health", "/ready")
                ]
            running.signal(signal.SIGTERM)
            assert await running.wait() == 0

    said = {event.get("event") for event in running.events}
    assert {"delivery_settled", "webhook_unopenable", "database_reconnected"} <= said
    await assert_nothing_is_given_away(rig, running.output + "\n".join(probes))


async def test_a_traceback_gives_nothing_away(rig, lines):
    webhook_id = await add_webhook(rig, "/hook")
    async with rig.worker() as running:

        async def crash(webhook, delivery, body):
            raise RuntimeError(f"no code of ours says what it handles, but {type(body).__name__}")

        running.worker._fanout.send = crash
        await insert(rig, webhook_id)
        await rig.until_all("failed")

    assert any("Traceback" in str(event) for event in lines.named("attempt_crashed"))
    await assert_nothing_is_given_away(rig, "\n".join(map(str, lines.events)))


async def test_a_secret_that_is_cut_where_the_excerpt_ends_is_masked_too(rig):
    webhook_id = await add_webhook(rig, "/hook")
    rig.receiver.default = answer(400, body=b"x" * 1012 + f"/hook/{PATH}".encode())
    async with rig.worker():
        await insert(rig, webhook_id)
        await rig.until_all("failed")

    error = await rig.database.fetch_value("SELECT last_error FROM pggit.alert_delivery_queue")
    assert error.startswith("HTTP 400: xxx")
    assert PATH[:6] not in error
