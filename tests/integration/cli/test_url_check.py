"""`url check` by the command itself; what the policy refuses is tested with the policy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PUBLIC = "93.184.215.14"
NAME = "https://hooks.example.com/tok3n"


@pytest.fixture
def judged(commands):
    """Give lines to `url check --jsonl`; returns the answers."""

    def judge(*lines: bytes | dict, end: bytes = b"\n", **settings: str) -> list[dict]:
        octets = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
        result = commands.ok(
            "url", "check", "--jsonl", stdin=octets + end, **{"EGRESS_UNSAFE_ALLOW": "", **settings}
        )
        return [json.loads(line) for line in result.out.splitlines()]

    return judge


def verdicts(answers: list[dict]) -> list[str]:
    assert all(set(answer) == {"verdict", "why"} and answer["why"] for answer in answers)
    return [answer["verdict"] for answer in answers]


def test_a_line_comes_back_for_each_and_in_order(judged) -> None:
    answers = judged(
        {"url": NAME, "answers": [[PUBLIC]]},
        {"url": NAME, "answers": [["10.0.0.1"]]},
        {"url": NAME, "answers": [[PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c"], [PUBLIC]]},
    )

    assert verdicts(answers) == ["accept", "reject", "accept"]
    assert "10.0.0.1" in answers[1]["why"]


@pytest.mark.parametrize(
    "answers",
    [
        [[PUBLIC, "127.0.0.1"]],
        [[PUBLIC], ["127.0.0.1"]],
        [[PUBLIC], [PUBLIC, "::ffff:10.0.0.1"]],
        [[PUBLIC], None],
        [None, [PUBLIC]],
        [[PUBLIC], []],
        [[]],
        [],
        None,
        [[PUBLIC, ""]],
        [["nonsense"]],
        [["0x7f.1"]],
        ["93.184.215.14"],
        [[1]],
        [[None]],
        {"a": [PUBLIC]},
        [[PUBLIC]] * 1001,
        [[PUBLIC] * 1001],
    ],
)
def test_one_bad_failed_empty_or_malformed_answer_rejects(judged, answers) -> None:
    assert verdicts(judged({"url": NAME, "answers": answers})) == ["reject"]


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"https://hooks.example.com/"',
        b"\xff\xfe",
        b'{"answers": [["93.184.215.14"]]}',
        b'{"url": 1, "answers": [["93.184.215.14"]]}',
        b'{"url": "https://hooks.example.com/", "url": "https://hooks.example.com/", "answers": [["93.184.215.14"]]}',
        b'{"url": "https://hooks.example.com/\\ud800", "answers": [["93.184.215.14"]]}',
        b'{"url": "https://hooks.example.com/", "answers": [["93.184.215.14"]]} trailing',
        b"[" * 100_000,
        b"1" * 5_000,
        b'{"url": "' + b"x" * 1_100_000 + b'"}',
    ],
    ids=lambda line: repr(line[:40]),
)
def test_a_malformed_line_is_a_reject_with_its_reason_and_the_next_is_judged(judged, line) -> None:
    good = {"url": NAME, "answers": [[PUBLIC]]}

    assert verdicts(judged(line, good)) == ["reject", "accept"]


def test_the_last_line_needs_no_end_and_windows_ends_are_fine(judged) -> None:
    good = json.dumps({"url": NAME, "answers": [[PUBLIC]]}).encode()

    assert verdicts(judged(good + b"\r", good, end=b"")) == ["accept", "accept"]


def test_no_line_is_no_answer(judged) -> None:
    assert judged(end=b"") == []


def test_members_that_it_does_not_know_are_no_harm(judged) -> None:
    assert verdicts(judged({"url": NAME, "answers": [[PUBLIC]], "id": 7})) == ["accept"]


def test_a_literal_address_needs_no_answers_and_must_be_what_they_say(judged) -> None:
    url = f"https://{PUBLIC}/"

    assert verdicts(judged({"url": url}, {"url": url, "answers": [["1.1.1.1"]]})) == ["accept", "reject"]


def test_without_answers_the_name_is_looked_up(judged) -> None:
    (unknown,) = judged({"url": "https://no-such-name.example.com/"})
    (local,) = judged({"url": "https://localhost:8443/"}, EGRESS_UNSAFE_ALLOW="127.0.0.0/8:*,[::1]:*")

    assert (unknown["verdict"], local["verdict"]) == ("reject", "accept")


def test_the_rules_of_the_settings_apply(judged) -> None:
    asked = {"url": "https://hooks.example.com:8443/", "answers": [["10.0.0.1"]]}

    assert verdicts(judged(asked)) == ["reject"]
    assert verdicts(judged(asked, EGRESS_UNSAFE_ALLOW="10.0.0.0/8:8443")) == ["accept"]
    assert verdicts(judged({"url": NAME, "answers": [[PUBLIC]]}, EGRESS_DENY=f"{PUBLIC}/32")) == ["reject"]


def test_no_answer_shows_a_path(judged, commands) -> None:
    judged({"url": NAME, "answers": [["10.0.0.1"]]}, {"url": NAME}, {"url": NAME + "\n"})

    assert "tok3n" not in commands.printed


def test_each_answer_comes_before_the_next_line_is_given(commands) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "pggit_reactor", "url", "check", "--jsonl"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **commands.environ},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    for address in (PUBLIC, "10.0.0.1"):
        process.stdin.write(json.dumps({"url": NAME, "answers": [[address]]}).encode() + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["verdict"] == (
            "accept" if address == PUBLIC else "reject"
        )
    process.communicate()

    assert process.returncode == 0


def test_a_single_url_is_exit_0_or_3(commands) -> None:
    good = commands.ok("url", "check", f"https://{PUBLIC}/tok3n")
    bad = commands("url", "check", "https://10.0.0.1/tok3n")
    unknown = commands("url", "check", "https://no-such-name.example.com/tok3n")

    assert PUBLIC in good.out
    assert (bad.status, unknown.status) == (3, 3)
    assert (bad.err.count("\n"), bad.out) == (1, "")
    assert "tok3n" not in commands.printed


def test_a_single_url_as_json(commands) -> None:
    good = commands.ok("url", "check", f"https://{PUBLIC}/", "--json").json
    bad = commands("url", "check", "https://10.0.0.1/", "--json")

    assert (good["verdict"], good["addresses"]) == ("accept", [PUBLIC])
    assert (bad.status, bad.json["verdict"]) == (3, "reject")


@pytest.mark.parametrize("arguments", [[], ["https://a.example.com/", "--jsonl"]])
def test_it_takes_one_url_or_lines(commands, arguments) -> None:
    assert commands("url", "check", *arguments).status == 2
