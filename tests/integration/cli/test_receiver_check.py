"""`receiver check` as a user runs it: a process, a file with the secret, a receiver on TLS; no database."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from functools import partial

import pytest
import trio

from pggit_reactor.core.signing import new_secret, secret_key
from pggit_reactor.testing.receiver import open_receiver
from pggit_reactor.testing.verifiers import Flaw, Verifier, verifying

SECRET = new_secret(bytes(range(32)))
OLDER = "an older secret of its own, in plain text"
PATH = "/hooks/s3cret-path?token=s3cret-query"


@pytest.fixture
async def receiver():
    async with open_receiver() as running:
        yield running


def behave(receiver, *flaws, secrets=(SECRET,)):
    verifier = Verifier(keys=tuple(map(secret_key, secrets)), flaws=frozenset(flaws))
    receiver.default = verifying(verifier, time.time)


@pytest.fixture
def check(receiver, tmp_path):
    """Run it on the receiver, in an environment that knows no database and no key."""
    (tmp_path / "secret").write_text(SECRET + "\n")
    (tmp_path / "secret").chmod(0o600)

    async def run(*options, url=None, stdin="", unsafe="127.0.0.0/8:*"):
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PGGIT_")}
        environ |= {"SSL_CERT_FILE": str(receiver.ca_file), "PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": unsafe}
        if not any(option.startswith("--secret-file") for option in options):
            options = ("--secret-file", "secret", *options)
        command = [
            sys.executable,
            "-m",
            "pggit_reactor",
            "receiver",
            "check",
            url or receiver.url(PATH),
            *options,
        ]
        call = partial(
            subprocess.run,
            command,
            env=environ,
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        return await trio.to_thread.run_sync(call)

    return run


async def test_a_good_receiver_is_exit_0_and_a_table(receiver, check):
    behave(receiver)
    done = await check()

    assert (done.returncode, done.stderr) == (0, "")
    assert f"{receiver.url('')} verifies: standard, pggit\n" in done.stdout
    lines = done.stdout.splitlines()
    assert [line.split() for line in lines if line.startswith("altered-id ")] == [
        ["altered-id", "standard", "4xx", "401", "pass"],
        ["altered-id", "pggit", "4xx", "401", "pass"],
    ]
    assert "fail" not in done.stdout
    assert lines[-1].endswith("required checks passed")


async def test_a_broken_receiver_is_exit_3_and_told_what_is_wrong(receiver, check):
    behave(receiver, Flaw.IGNORES_TIME)
    done = await check("--family", "standard")

    assert done.returncode == 3
    assert "fail: stale (standard)" in done.stdout
    assert "it does not check the time" in done.stdout
    assert "pggit" not in done.stdout


async def test_json_has_a_record_for_each_check(receiver, check):
    behave(receiver, Flaw.TAKES_ANYTHING)
    done = await check("--json")
    report = json.loads(done.stdout)

    assert done.returncode == 3
    assert (report["passed"], report["families"]) == (False, ["standard", "pggit"])
    (forged,) = [c for c in report["checks"] if (c["name"], c["form"]) == ("wrong-secret", "pggit")]
    assert (forged["verdict"], forged["got"], forged["wants"], forged["required"]) == (
        "fail",
        "200",
        "4xx",
        True,
    )


async def test_neither_secret_nor_path_is_printed(receiver, check):
    for flaw in (Flaw.TAKES_ANYTHING, Flaw.REFUSES_EVERYTHING):
        behave(receiver, flaw)
        for options in ((), ("--json",)):
            done = await check(*options)

            assert "s3cret" not in done.stdout + done.stderr
            assert SECRET not in done.stdout + done.stderr


async def test_secrets_come_from_standard_input_newest_first(receiver, check):
    behave(receiver, secrets=(SECRET, OLDER))
    done = await check("--secret-file", "-", stdin=f"{SECRET}\n{OLDER}\n")
    assert (done.returncode, done.stderr) == (0, "")

    behave(receiver, secrets=(SECRET,))
    done = await check("--secret-file", "-", stdin=f"{SECRET}\n{OLDER}\n")
    assert done.returncode == 3
    assert "fail: each-secret" in done.stdout


async def test_a_receiver_on_this_machine_needs_the_setting(receiver, check):
    done = await check(unsafe="")

    assert done.returncode == 3
    assert done.stderr.startswith("error: https://127.0.0.1:")
    assert "egress." in done.stderr
    assert receiver.connection_count == 0


async def test_a_receiver_that_is_not_there_is_exit_3_with_the_reason(receiver, check):
    async with open_receiver() as gone:
        url = gone.url("/hook")
    done = await check(url=url)

    assert done.returncode == 3
    assert "connection refused" in done.stdout
    assert "the rest was not tried" in done.stdout


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot read the secrets from"),
        (b"", "want 1 to 8 lines"),
        (b"\n".join([SECRET.encode()] * 9), "want 1 to 8 lines"),
        (b"too short", "must have 24 or more"),
        (b"whsec_!", "is not base64"),
        (b"\xff" * 30, "are not UTF-8"),
        (b"x" * 5000, "holds no signing secrets"),
    ],
)
async def test_what_is_no_secret_is_exit_2_before_anything_is_sent(receiver, check, tmp_path, content, words):
    if content is not None:
        (tmp_path / "other").write_bytes(content)
        (tmp_path / "other").chmod(0o600)
    done = await check("--secret-file", "other")

    assert done.returncode == 2
    assert words in done.stderr
    assert receiver.connection_count == 0


async def test_a_secret_that_everybody_can_read_is_warned_of(receiver, check, tmp_path):
    behave(receiver)
    (tmp_path / "secret").chmod(0o644)
    done = await check()

    assert done.returncode == 0
    assert "readable by everybody" in done.stderr
