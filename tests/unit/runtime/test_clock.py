"""The machine's clock and dice."""

from __future__ import annotations

import time

from pggit_reactor.runtime.clock import RANDOM_TOKEN_BITS, SystemClock


def test_wall_time_is_unix_time() -> None:
    assert abs(SystemClock().wall() - time.time()) < 5


def test_draws_are_fractions_and_differ() -> None:
    draws = [SystemClock().draw() for _ in range(100)]

    assert all(0 <= draw < 1 for draw in draws)
    assert len(set(draws)) > 90


def test_tokens_fit_a_bigint_are_never_zero_and_differ() -> None:
    tokens = [SystemClock().random_token() for _ in range(1000)]

    assert all(1 <= token <= 2**RANDOM_TOKEN_BITS for token in tokens)
    assert len(set(tokens)) == 1000
    assert max(tokens) > 2 ** (RANDOM_TOKEN_BITS - 8)
