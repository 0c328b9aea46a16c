"""Composing a request: its octets, and that no header becomes two."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.model import FailureKind
from pggit_reactor.core.url_policy import EgressRules, parse_target
from pggit_reactor.delivery.failures import AttemptError
from pggit_reactor.delivery.requests import compose_request

TARGET = parse_target("https://example.com/hook?x=1", EgressRules.parse())


def test_a_request_is_its_line_its_fields_and_its_body():
    parts = compose_request("POST", TARGET, [("X-A", "b")], b"{}")

    assert parts == (
        b"POST /hook?x=1 HTTP/1.1\r\nHost: example.com\r\nAccept-Encoding: identity\r\n"
        b"X-A: b\r\nContent-Length: 2\r\n\r\n{}",
    )


def test_an_empty_post_says_so_and_an_empty_get_need_not():
    (post,) = compose_request("POST", TARGET, [], b"")
    (get,) = compose_request("GET", TARGET, [], b"")

    assert b"Content-Length: 0\r\n" in post
    assert b"Content-Length" not in get


def test_a_large_body_is_not_copied():
    body = b"x" * 100_000

    _, sent = compose_request("POST", TARGET, [], body)

    assert sent is body


@pytest.mark.parametrize(
    "header",
    [("X", "a\r\nY: b"), ("X", "a\nY: b"), ("X", "a\rb"), ("X\r\nY", "a"), ("X", "a\0b"), ("X", "\u2028")],
)
def test_a_header_that_is_not_one_line_is_refused(header):
    with pytest.raises(AttemptError) as caught:
        compose_request("POST", TARGET, [header], b"{}")

    assert caught.value.failure.kind is FailureKind.BAD_HEADERS


@given(st.lists(st.tuples(st.text(min_size=1, max_size=5), st.text(max_size=10)), max_size=3))
def test_whatever_headers_are_given_there_are_as_many_lines_or_none(headers):
    try:
        (request,) = compose_request("POST", TARGET, headers, b"")
    except AttemptError:
        return

    head, end, rest = request.partition(b"\r\n\r\n")
    assert end
    assert rest == b""
    assert len(head.split(b"\r\n")) == 4 + len(headers)
