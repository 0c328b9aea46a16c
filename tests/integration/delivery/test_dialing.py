"""Which addresses are connected to: judged ones only, each look-up anew, the next where one fails."""

from __future__ import annotations

import socket
from contextlib import ExitStack, contextmanager

import pytest
import trio

from pggit_reactor.core.model import Answer, AttemptFailure, FailureKind
from pggit_reactor.delivery.connections import PoolLimits
from pggit_reactor.testing.receiver import LOOPBACK_NAMES, open_receiver
from pggit_reactor.testing.senders import open_sender

NAME = "hooks.example.com"


class ScriptedResolver:
    """Gives one answer after the other, the last for ever."""

    def __init__(self, *answers: tuple[str, ...] | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def resolve(self, host: str, port: int) -> tuple[str, ...]:
        await trio.lowlevel.checkpoint()
        self.asked.append((host, port))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
async def receiver():
    async with open_receiver(names=(*LOOPBACK_NAMES, NAME)) as receiver:
        yield receiver


@contextmanager
def silent_port(host: str, port: int):
    """A port that neither accepts nor refuses: its queue is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind((host, port))
        listener.listen(0)
        for _ in range(2):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex((host, port))
        yield


async def test_the_name_is_resolved_and_verified_but_the_address_is_connected_to(receiver):
    resolver = ScriptedResolver(("127.0.0.1",))
    async with open_sender(receiver, resolver=resolver) as sender:
        result = await sender.post(host=NAME)

    assert isinstance(result.outcome, Answer)
    assert resolver.asked == [(NAME, receiver.port)]
    assert receiver.requests[0].header("host") == f"{NAME}:{receiver.port}"


@pytest.mark.parametrize(
    "answer",
    [
        ("10.0.0.1",),
        ("127.0.0.1", "10.0.0.1"),
        ("10.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "169.254.169.254"),
        ("127.0.0.1", "::ffff:169.254.169.254"),
        ("127.0.0.1", "fe80::1%lo"),
        ("127.0.0.1", "not an address"),
        (),
    ],
)
async def test_one_bad_address_refuses_all_and_nobody_is_connected_to(receiver, answer):
    async with open_sender(receiver, resolver=ScriptedResolver(answer)) as sender:
        result = await sender.post(host=NAME)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.URL_REFUSED
    assert receiver.connection_count == 0


async def test_a_name_that_turns_bad_is_refused_at_its_next_connection(receiver):
    """DNS rebinding: the first look-up, or that of the registration, proves nothing about the next."""
    resolver = ScriptedResolver(("127.0.0.1",), ("169.254.169.254",))
    async with open_sender(receiver, resolver=resolver, limits=PoolLimits(age_seconds_max=0)) as sender:
        first = await sender.post(host=NAME)
        second = await sender.post(host=NAME)

    assert isinstance(first.outcome, Answer)
    assert isinstance(second.outcome, AttemptFailure)
    assert second.outcome.kind is FailureKind.URL_REFUSED


async def test_the_next_address_is_tried_where_one_refuses(receiver):
    async with open_sender(receiver, resolver=ScriptedResolver(("127.0.0.2", "127.0.0.1"))) as sender:
        result = await sender.post(host=NAME)

    assert isinstance(result.outcome, Answer)
    assert result.address == "127.0.0.1"


async def test_the_next_address_is_tried_where_one_is_silent(receiver):
    resolver = ScriptedResolver(("127.0.0.2", "127.0.0.3", "127.0.0.1"))
    async with open_sender(receiver, resolver=resolver) as sender:
        with silent_port("127.0.0.2", receiver.port), silent_port("127.0.0.3", receiver.port):
            result = await sender.post(host=NAME)

    assert isinstance(result.outcome, Answer)
    assert result.address == "127.0.0.1"
    assert result.phases.connected < 2


async def test_families_take_turns(receiver):
    """Two dead IPv6 addresses in front cost one turn, not two."""
    resolver = ScriptedResolver(("::1", "0:0:0:0:0:0:0:1", "127.0.0.1"))
    async with open_sender(receiver, resolver=resolver) as sender:
        result = await sender.post(host=NAME)

    assert result.address == "127.0.0.1"


async def test_where_all_addresses_fail_the_first_is_named(receiver):
    async with open_sender(receiver, resolver=ScriptedResolver(("127.0.0.2", "127.0.0.3"))) as sender:
        result = await sender.post(host=NAME)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.CONNECT
    assert result.outcome.detail == f"127.0.0.2:{receiver.port}: connection refused"


async def test_a_silent_address_is_a_timeout_that_says_so(receiver):
    async with open_sender(receiver, resolver=ScriptedResolver(("127.0.0.2",))) as sender:
        with silent_port("127.0.0.2", receiver.port):
            result = await sender.post(host=NAME, deadline_seconds=0.2)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.TIMEOUT
    assert result.outcome.detail.endswith("connecting")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (socket.EAI_NONAME, "does not exist"),
        (socket.EAI_AGAIN, "does not answer for now"),
        (socket.EAI_FAIL, "failed"),
    ],
)
async def test_a_failed_look_up_says_why(receiver, code, words):
    resolver = ScriptedResolver(socket.gaierror(code, "whatever"))
    async with open_sender(receiver, resolver=resolver) as sender:
        result = await sender.post(host=NAME)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.DNS
    assert words in result.outcome.detail
    assert NAME in result.outcome.detail


async def test_a_bug_in_a_part_of_ours_is_an_internal_failure_without_its_text(receiver):
    resolver = ScriptedResolver(RuntimeError("s3cret"))
    async with open_sender(receiver, resolver=resolver) as sender:
        result = await sender.post(host=NAME)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.INTERNAL
    assert "RuntimeError" in result.outcome.detail
    assert "s3cret" not in result.outcome.detail


async def test_a_look_up_that_hangs_counts_against_the_deadline(receiver):
    class Hanging:
        async def resolve(self, host: str, port: int) -> tuple[str, ...]:
            await trio.sleep_forever()
            raise AssertionError

    async with open_sender(receiver, resolver=Hanging()) as sender:
        result = await sender.post(host=NAME, deadline_seconds=0.1)

    assert isinstance(result.outcome, AttemptFailure)
    assert result.outcome.kind is FailureKind.TIMEOUT
    assert result.outcome.detail.endswith("looking the name up")
