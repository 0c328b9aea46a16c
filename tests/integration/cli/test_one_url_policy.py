"""One policy: `url check`, registration, `webhook test` and a worker's delivery say the same of every URL."""

from __future__ import annotations

import json

import pytest
import trio

from pggit_reactor.testing.database import ReactorDatabase
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.rig import Rig

FREE = "127.0.0.0/8:*"

BAD = [
    "http://127.0.0.1:{port}/s3cret",
    "https://user:pass@127.0.0.1:{port}/s3cret",
    "https://127.0.0.1:{port}/s3cret#x",
    "https://127.1:{port}/s3cret",
    "https://2130706433:{port}/s3cret",
    "https://0x7f000001:{port}/s3cret",
    "https://0177.0.0.1:{port}/s3cret",
    "https://%31%32%37.0.0.1:{port}/s3cret",
    "https://127.0.0.1.:{port}/s3cret",
    "https://１２７.0.0.1:{port}/s3cret",
    "https://localhost.:{port}/s3cret",
    "https://ⓛocalhost:{port}/s3cret",
    "https://10.0.0.1/s3cret",
    "https://0.0.0.0:{port}/s3cret",
    "https://169.254.169.254/s3cret",
    "https://168.63.129.16/s3cret",
    "https://[::1]:{port}/s3cret",
    "https://[::ffff:7f00:1]:{port}/s3cret",
    "https://[64:ff9b::7f00:1]:{port}/s3cret",
    "https://[2002:7f00:1::]:{port}/s3cret",
    "https://[fe80::1%25lo]:{port}/s3cret",
    "https://8.8.8.8:22/s3cret",
    "https://xn--a.com/s3cret",
]
GOOD = ["https://127.0.0.1:{port}/hook", "https://localhost:{port}/hook"]
"""localhost is ::1 as well in most places, and that is not free: so it may be either, and the same everywhere."""


async def verdicts_of_worker(rig: Rig, urls: list[str]) -> list[bool]:
    """Deliver to each of *urls* and return which were not refused."""
    ids = [await rig.add_webhook(url=url) for url in urls]
    deliveries = [(await rig.insert(webhook_id))[0] for webhook_id in ids]
    async with rig.worker(EGRESS_UNSAFE_ALLOW=FREE):
        for delivery_id in deliveries:
            await rig.until(
                "SELECT delivery_status IN ('delivered', 'failed') FROM pggit.alert_delivery_queue"
                " WHERE delivery_id = %s",
                delivery_id,
            )
    rows = [await rig.row(delivery_id, "delivery_status", "failed_reason") for delivery_id in deliveries]
    assert all(row in {("delivered", None), ("failed", "url_refused")} for row in rows), rows
    return [row[0] == "delivered" for row in rows]


def test_all_four_ways_say_the_same_of_every_url(
    commands, reactor_database: ReactorDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, list[bool]] = {}
    shown = ""

    async def main() -> None:
        nonlocal shown
        async with open_receiver() as receiver:
            rig = Rig(database=reactor_database, receiver=receiver)
            urls = [url.format(port=receiver.port) for url in BAD + GOOD]
            said["delivery"] = await verdicts_of_worker(rig, urls)
            said["url check"], said["add"], said["test"] = [], [], []
            monkeypatch.setenv("SSL_CERT_FILE", str(receiver.ca_file))
            for number, url in enumerate(urls):
                for way, arguments in {
                    "url check": ["url", "check", url],
                    "add": ["webhook", "add", url],
                    "test": ["webhook", "test", str(number + 1)],
                }.items():
                    result = await trio.to_thread.run_sync(run, arguments)
                    shown += result.out + result.err
                    assert result.status in {0, 3}, (way, url, result)
                    said[way].append(result.status == 0)

    def run(arguments: list[str]):
        return commands(*arguments, EGRESS_UNSAFE_ALLOW=FREE)

    trio.run(main)

    wanted = said["url check"]
    assert said == dict.fromkeys(said, wanted)
    assert wanted[: len(BAD)] == [False] * len(BAD)
    assert wanted[len(BAD)]
    assert "s3cret" not in shown


def test_one_function_vets_for_all(monkeypatch: pytest.MonkeyPatch, commands, hook) -> None:
    """What the commands ask is what the dialer asks: a verdict of it is a verdict of all."""
    from pggit_reactor.delivery import vetting
    from pggit_reactor.errors import UrlRefusedError

    asked = []

    async def refuse(target, rules, resolver):
        asked.append(target.origin)
        raise UrlRefusedError("refused by the test")

    monkeypatch.setattr(vetting, "vet", refuse)
    check = commands("url", "check", hook)
    stream = commands("url", "check", "--jsonl", stdin=json.dumps({"url": hook}).encode())
    add = commands("webhook", "add", hook)

    assert (check.status, add.status, stream.json["verdict"]) == (3, 3, "reject")
    assert asked == ["https://203.0.113.9"] * 3
