from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.cli.webhook_keys import KEYS, keys_help, parse_change
from pggit_reactor.db.registry import Policy
from pggit_reactor.errors import BadHeadersError, ConfigurationError


@pytest.mark.parametrize(
    ("word", "field", "value"),
    [
        ("attempt_timeout=5", "attempt_timeout", 5.0),
        ("attempt_timeout=100ms", "attempt_timeout", 0.1),
        ("attempt_timeout=20s", "attempt_timeout", 20.0),
        ("give_up_after=90m", "give_up_after", 5400.0),
        ("give_up_after=365d", "give_up_after", 365 * 86_400.0),
        ("concurrency=256", "concurrency", 256),
        ("max_body_bytes=16777216", "max_body_bytes", 16_777_216),
        ("rate=0", "rate_per_s", 0.0),
        ("rate=2.5", "rate_per_s", 2.5),
        ("signature_scope=body-only", "signature_scope", "body-only"),
        ("ordering=key", "ordering", "key"),
        ("max_attempts=", "max_attempts", None),
        ("weight=100", "weight", 100),
        (
            "status_policy=5xx:permanent,404:transient",
            "status_policy",
            {"404": "transient", "5xx": "permanent"},
        ),
    ],
)
def test_a_word_becomes_the_value_of_its_field(word, field, value) -> None:
    assert dict(parse_change([word]).policy) == {field: value}


@pytest.mark.parametrize(
    "word",
    [
        "attempt_timeout=99ms", "attempt_timeout=20.1", "attempt_timeout=-1", "attempt_timeout=1e1",
        "attempt_timeout=nan", "give_up_after=0", "give_up_after=366d", "give_up_after=1w", "concurrency=257",
        "concurrency=1.0", "concurrency=+1", "max_attempts=0", "max_attempts=1001", "max_body_bytes=16777217",
        "rate=-1", "rate=inf", "rate=1e3", "burst=0", "signature_scope=none", "weight=0", "weight=101",
        "ordering=strict",
    ],
)  # fmt: skip
def test_a_value_beyond_its_bounds_names_key_and_bounds(word) -> None:
    name = word.partition("=")[0]
    with pytest.raises(ConfigurationError) as refused:
        parse_change([word])

    assert str(refused.value).startswith(name)
    assert KEYS[name].takes in str(refused.value)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("404", '"404" is not STATUS:MEANING'),
        ("404:later", 'calls "404" "later"; right are permanent and transient'),
        ("200:permanent", 'no name "200"; right are 300 to 599, 3xx, 4xx, 5xx'),
        ("404:transient,404:permanent", 'names "404" twice'),
    ],
)
def test_a_wrong_status_policy_is_refused_with_what_would_be_right(words, complaint) -> None:
    with pytest.raises(ConfigurationError) as refused:
        parse_change([f"status_policy={words}"])

    assert complaint in str(refused.value)


def test_every_key_is_a_field_of_the_policy_and_in_the_help() -> None:
    fields = {field.name for field in attrs.fields(Policy)}

    assert {key.field for key in KEYS.values()} == fields
    assert all(f"  {name} " in keys_help() for name in KEYS)


def test_labels_of_json_replace_all_and_single_ones_are_added() -> None:
    change = parse_change(["label.a=1", 'labels={"b": "2"}', "label.c="])

    assert change.replaces_labels
    assert dict(change.labels) == {"a": "1", "b": "2", "c": None}


def test_a_header_value_is_a_secret_from_the_first_moment() -> None:
    change = parse_change(["header.Authorization=Bearer s3cret", "url=https://a.example.com/s3cret"])

    assert "s3cret" not in repr(change)
    with pytest.raises(BadHeadersError) as refused:
        parse_change(["header.Authorization=s3cret\x00"])
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 9000])
def test_a_header_file_that_is_empty_or_too_long_is_refused(tmp_path, content) -> None:
    (tmp_path / "f").write_bytes(content)

    with pytest.raises(ConfigurationError):
        parse_change([f"header.X=@{tmp_path / 'f'}"])


def test_a_header_file_that_is_missing_is_named(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="missing"):
        parse_change([f"header.X=@{tmp_path / 'missing'}"])


@given(st.lists(st.text(), max_size=4))
def test_no_words_break_the_parser(words) -> None:
    try:
        change = parse_change(words)
    except (ConfigurationError, BadHeadersError):
        return
    assert len({word.partition("=")[0] for word in words}) == len(words)
    assert change is not None
