"""The last line of defence: shapes of secrets in any text or value."""

from __future__ import annotations

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.secret import Secret
from pggit_reactor.observability.redaction import TEXT_CHARS_MAX, mask_text, mask_value, redact

KEY = "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"secret whsec_{KEY}= is old", "secret whsec_<secret> is old"),
        ("postgresql://worker:hunter2@db:5432/x", "postgresql://worker:<secret>@db:5432/x"),
        ("postgres://:hun@ter@2@db/x", "postgres://:<secret>@db/x"),
        ("host=db password=hunter2 user=w", "host=db password=<secret> user=w"),
        ("host=db password = 'hun ter2' user=w", "host=db password = <secret> user=w"),
        ('{"Password": "hunter2"}', '{"Password": <secret>}'),
        ('password authentication failed for user "w"', 'password authentication failed for user "w"'),
        (f"main:base64:{KEY}=", "main:base64:<secret>"),
        ("old:passphrase:correct horse battery", "old:passphrase:<secret>"),
        (f"a:base64:{KEY},b:base64:{KEY}", "a:base64:<secret>,b:base64:<secret>"),
        ("Bearer eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl", "Bearer <secret>"),
        (f"v1,{KEY}{KEY[:11]}= sent", "v1,<secret> sent"),
        ("sha256=" + "0f" * 32, "sha256=<secret>"),
        ("POST https://hooks.example.com/T0/B1?x=2 failed", "POST https://hooks.example.com/<path> failed"),
        ("https://hooks.example.com is down", "https://hooks.example.com is down"),
        ("listening on http://127.0.0.1:8000/metrics", "listening on http://127.0.0.1:8000/metrics"),
        ("eyJust a word, v1,2 and sha256=abc", "eyJust a word, v1,2 and sha256=abc"),
    ],
)
def test_a_text_keeps_all_but_its_secrets(text: str, masked: str) -> None:
    assert mask_text(text) == masked


@given(
    before=st.text(max_size=20),
    password=st.from_regex(r"[A-Za-z0-9!$&*+;=._~%-]{6,40}", fullmatch=True),
    after=st.text(max_size=20),
)
def test_no_password_of_an_url_survives(before: str, password: str, after: str) -> None:
    masked = mask_text(f"{before} postgresql://u:{password}@h/d {after}")

    assert f":{password}@" not in masked


def test_secrets_are_masked_wherever_they_sit() -> None:
    secret = Secret("hunter2")
    event = {
        "event": "x",
        "plain": secret,
        "nested": {"list": [secret, {"deep": (secret,)}]},
        "octets": b"postgresql://u:hunter2@h/d",
        "error": ValueError("postgresql://u:hunter2@h/d"),
        "authorization": "Basic hunter2",
        "config": {"master_key": "hunter2"},
    }

    text = json.dumps(redact(None, "info", event))
    assert "hunter2" not in text
    assert text.count("<secret>") == 7


def test_plain_values_stay_what_they_are() -> None:
    event = {"event": "x", "n": 1, "f": 0.5, "b": True, "none": None, "list": [1, "two"]}

    assert redact(None, "info", dict(event)) == event


def test_what_json_cannot_hold_becomes_text() -> None:
    assert mask_value(math.inf) == "inf"
    assert mask_value({1: math.nan}) == {"1": "nan"}
    assert mask_value({1, 2}) == [1, 2]


def test_values_are_bounded_in_length_depth_and_number() -> None:
    deep: object = "x"
    for _ in range(10):
        deep = [deep]

    assert len(mask_text("x" * 100_000)) <= TEXT_CHARS_MAX + 10
    assert mask_text("x" * 100_000 + "the end").endswith("the end")
    assert "[cut: nested too deep]" in json.dumps(mask_value(deep))
    assert mask_value(list(range(70)))[-1] == "[cut: 6 more]"
    assert mask_value(dict.fromkeys(range(70), 0))["[cut]"] == 6


@pytest.mark.parametrize(
    "piece",
    ["://:", "password=", "eyJ", "eyJaaaa.", "https:", ":passphrase:", "password   ", ":base64:", "v1,"],
)
def test_hostile_text_costs_little(piece: str) -> None:
    hostile = piece * (2 * TEXT_CHARS_MAX // len(piece))
    started = time.process_time()
    mask_text(hostile)

    # Measured: 1 to 6 ms. A pattern that backtracks takes seconds here.
    assert time.process_time() - started < 0.5
