"""Extra headers: what passes is fit for the wire, and what would frame, route or sign does not pass."""

import json

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.headers import (
    HEADER_BYTES_MAX,
    HEADER_COUNT_MAX,
    HEADER_NAME_CHARS_MAX,
    RESERVED_NAMES,
    RESERVED_PREFIXES,
    check_extra_headers,
    parse_extra_headers,
)
from pggit_reactor.errors import BadHeadersError
from pggit_reactor.testing import strategies as our

anything = st.dictionaries(st.text(max_size=20), st.text(max_size=20), max_size=4)


@given(headers=our.extra_headers())
def test_good_headers_come_back_as_they_are_also_from_json(headers):
    assert check_extra_headers(headers) == tuple(headers.items())
    assert parse_extra_headers(json.dumps(headers)) == tuple(headers.items())


@given(headers=st.one_of(anything, our.extra_headers()))
def test_what_passes_is_written_by_a_strict_parser_and_read_back_unchanged(headers):
    try:
        checked = check_extra_headers(headers)
    except BadHeadersError:
        return
    wire = [(name.encode("ascii"), value.encode("latin-1")) for name, value in checked]

    sender, receiver = h11.Connection(h11.CLIENT), h11.Connection(h11.SERVER)
    receiver.receive_data(
        sender.send(h11.Request(method="POST", target="/", headers=[(b"host", b"a"), *wire]))
    )

    # Optional white space around a value is not the value's; nothing that passed may depend on it.
    assert receiver.next_event().headers.raw_items()[1:] == wire


@given(
    name=st.one_of(
        st.sampled_from(sorted(RESERVED_NAMES)),
        st.sampled_from(RESERVED_PREFIXES).flatmap(
            lambda prefix: st.from_regex("[a-z-]{0,12}", fullmatch=True).map(prefix.__add__)
        ),
    ),
    upper=st.booleans(),
)
def test_names_that_frame_route_or_sign_are_refused_in_any_case(name, upper):
    with pytest.raises(BadHeadersError):
        check_extra_headers({name.upper() if upper else name.title(): "x"})


@given(value=st.text(max_size=20), bad=st.characters(categories=["Cc"]), end=st.text(max_size=20))
def test_a_control_character_is_refused_and_not_shown(value, bad, end):
    with pytest.raises(BadHeadersError) as caught:
        check_extra_headers({"X-Extra": value + bad + end})

    assert bad not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a:b", "a\r\nb", "é", "a(b)", "name\0", "ſ"])
def test_a_name_that_is_no_token_is_refused(name):
    with pytest.raises(BadHeadersError, match="no header name"):
        check_extra_headers({name: "x"})


@pytest.mark.parametrize("value", [" x", "x ", "\xa0x", "€", "x\ty", "\x7f", "\x85"])
def test_a_value_that_would_change_on_its_way_is_refused(value):
    with pytest.raises(BadHeadersError, match="X-Extra"):
        check_extra_headers({"X-Extra": value})


def test_a_name_may_be_as_long_as_sql_lets_it_be():
    assert check_extra_headers({"x" * HEADER_NAME_CHARS_MAX: "v"})
    with pytest.raises(BadHeadersError, match="longer than 128"):
        check_extra_headers({"x" * (HEADER_NAME_CHARS_MAX + 1): "v"})


def test_a_value_is_never_in_the_message():
    with pytest.raises(BadHeadersError) as caught:
        check_extra_headers({"Authorization": "Bearer hunter2\n"})

    assert "hunter2" not in str(caught.value)


def test_a_name_twice_in_different_case_is_refused():
    with pytest.raises(BadHeadersError, match="twice"):
        check_extra_headers({"X-Extra": "1", "x-extra": "2"})


def test_as_many_as_allowed_pass_and_one_more_does_not():
    headers = {f"x-{number}": "v" for number in range(HEADER_COUNT_MAX)}

    assert len(check_extra_headers(headers)) == HEADER_COUNT_MAX
    with pytest.raises(BadHeadersError, match="33 extra headers"):
        check_extra_headers({**headers, "x-more": "v"})


def test_as_large_as_allowed_passes_and_one_octet_more_does_not():
    value = "v" * (HEADER_BYTES_MAX - len("x") - len(": \r\n"))

    assert check_extra_headers({"x": value})
    with pytest.raises(BadHeadersError, match="8193 octets"):
        check_extra_headers({"x": value + "v"})


@pytest.mark.parametrize("text", [None, "null", "{}"])
def test_no_headers_are_none(text):
    assert parse_extra_headers(text) == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '"x"',
        "1",
        "{",
        '{"a": 1}',
        '{"a": null}',
        '{"a": ["b"]}',
        '{"a": {}}',
        '{"a": "1", "a": "2"}',
        "[" * 50_000,
        "9" * 5_000,
        '{"a": "' + "x" * 100_000 + '"}',
        '{"a": "\\ud800"}',
    ],
)
def test_what_is_no_object_of_strings_is_refused(text):
    with pytest.raises(BadHeadersError):
        parse_extra_headers(text)
