"""Look-ups share threads, and slow ones wait for nobody but each other. Threads are real, names are not."""

from __future__ import annotations

import socket
import threading
from collections import Counter

import pytest
import trio
import trio.testing

from pggit_reactor.core.model import FailureKind
from pggit_reactor.delivery.failures import AttemptError
from pggit_reactor.delivery.resolver import SystemResolver


class Names:
    """A name service whose names answer when the test says so; others answer at once."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.gates: dict[str, threading.Event] = {}
        self.running = 0
        self.running_max = 0
        self.idle = threading.Event()
        self._lock = threading.Lock()

    def hold(self, host: str) -> threading.Event:
        return self.gates.setdefault(host, threading.Event())

    def look(self, host: str, port: int) -> list[str]:
        with self._lock:
            self.asked[host] += 1
            self.running += 1
            self.idle.clear()
            self.running_max = max(self.running_max, self.running)
        try:
            if gate := self.gates.get(host):
                assert gate.wait(30), "a test forgot to let go"
            return [f"192.0.2.{port % 250}"]
        finally:
            with self._lock:
                self.running -= 1
                if not self.running:
                    self.idle.set()

    def release(self) -> None:
        for gate in self.gates.values():
            gate.set()


@pytest.fixture
def names():
    names = Names()
    yield names
    names.release()


async def test_the_system_knows_localhost():
    addresses = await SystemResolver().resolve("localhost", 443)

    assert "127.0.0.1" in addresses


async def test_a_name_that_does_not_exist_is_a_failure_that_says_so():
    with pytest.raises(AttemptError) as caught:
        await SystemResolver().resolve("nothing.invalid", 443)

    assert caught.value.failure.kind is FailureKind.DNS
    assert caught.value.failure.detail.startswith("nothing.invalid: ")


async def test_a_name_that_dns_cannot_hold_is_a_failure_too():
    with pytest.raises(AttemptError) as caught:
        await SystemResolver().resolve("a" * 64 + ".example", 443)

    assert caught.value.failure.kind is FailureKind.DNS


async def test_those_who_ask_for_one_name_at_once_share_a_look_up(names):
    gate = names.hold("one.example")
    resolver = SystemResolver(look=names.look)
    answers = []

    async def ask() -> None:
        answers.append(await resolver.resolve("one.example", 1))

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        gate.set()

    assert answers == [("192.0.2.1",)] * 10
    assert names.asked["one.example"] == 1


async def test_the_next_asker_gets_a_look_up_of_its_own(names):
    resolver = SystemResolver(look=names.look)

    await resolver.resolve("one.example", 1)
    await resolver.resolve("one.example", 1)

    assert names.asked["one.example"] == 2


async def test_an_asker_that_is_cancelled_takes_nothing_from_the_others(names):
    gate = names.hold("one.example")
    resolver = SystemResolver(look=names.look)
    answers = []

    async def ask() -> None:
        answers.append(await resolver.resolve("one.example", 1))

    async with trio.open_nursery() as nursery:
        async with trio.open_nursery() as first:
            first.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            first.cancel_scope.cancel()
        gate.set()

    assert answers == [("192.0.2.1",)]
    assert names.asked["one.example"] == 1


async def test_threads_are_bounded_and_the_rest_waits_its_turn(names):
    hosts = [f"{number}.example" for number in range(10)]
    for host in hosts:
        names.hold(host)
    resolver = SystemResolver(limit=3, look=names.look)

    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(resolver.resolve, host, 1)
        await trio.testing.wait_all_tasks_blocked()
        names.release()

    assert sum(names.asked.values()) == 10
    assert names.running_max <= 3


async def test_a_name_that_hangs_fails_at_the_resolver_s_own_deadline(names):
    names.hold("slow.example")
    resolver = SystemResolver(look=names.look, look_up_seconds=0.05)

    with pytest.raises(AttemptError) as caught:
        await resolver.resolve("slow.example", 1)

    assert caught.value.failure.kind is FailureKind.DNS
    assert "longer than 0.05 s" in caught.value.failure.detail


async def test_names_known_to_be_slow_do_not_take_the_threads_of_others(names):
    slow = [f"slow-{number}.example" for number in range(8)]
    for host in slow:
        names.hold(host)
    resolver = SystemResolver(limit=8, slow_limit=2, look=names.look, look_up_seconds=0.05)

    async def ask(host: str) -> None:
        with pytest.raises(AttemptError):
            await resolver.resolve(host, 1)

    async with trio.open_nursery() as nursery:  # All eight threads hang: once, nobody can know better.
        for host in slow:
            nursery.start_soon(ask, host)
    names.release()
    await trio.to_thread.run_sync(names.idle.wait, 30)
    await trio.testing.wait_all_tasks_blocked(0.05)  # The threads are done; Trio hears of it a moment later.
    for host in slow:
        names.gates[host] = threading.Event()

    async with trio.open_nursery() as nursery:
        for host in slow:
            nursery.start_soon(ask, host)
        await trio.testing.wait_all_tasks_blocked()

        assert await resolver.resolve("quick.example", 1) == ("192.0.2.1",)
        assert names.running <= 2


async def test_a_slow_name_that_recovers_is_like_any_other(names):
    gate = names.hold("one.example")
    resolver = SystemResolver(limit=1, slow_limit=1, look=names.look, look_up_seconds=0.05)
    with pytest.raises(AttemptError):
        await resolver.resolve("one.example", 1)
    gate.set()

    assert await resolver.resolve("one.example", 1) == ("192.0.2.1",)
    assert await resolver.resolve("one.example", 2) == ("192.0.2.2",)


async def test_more_addresses_than_anybody_has_are_refused():
    resolver = SystemResolver(look=lambda _host, _port: [f"192.0.2.{number}" for number in range(65)])

    with pytest.raises(AttemptError, match="dns"):
        await resolver.resolve("many.example", 1)


def test_a_look_up_that_outlives_the_program_s_loop_harms_nobody(names):
    gate = names.hold("one.example")

    async def main() -> None:
        with trio.move_on_after(0.01):
            await SystemResolver(look=names.look).resolve("one.example", 1)

    trio.run(main)
    gate.set()

    assert names.idle.wait(30)
    assert names.asked["one.example"] == 1


def test_an_error_of_the_system_keeps_its_meaning():
    def look(_host: str, _port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "whatever")

    async def main() -> None:
        with pytest.raises(AttemptError) as caught:
            await SystemResolver(look=look).resolve("one.example", 1)
        assert caught.value.failure.detail == "one.example: the name server does not answer for now"

    trio.run(main)
