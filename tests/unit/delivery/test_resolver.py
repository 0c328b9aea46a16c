"""Look-ups share threads, and slow ones wait for nobody but each other. Threads are real, names are not."""

from __future__ import annotations

import socket
import threading
from collections import Counter

import attrs
import pytest
import trio
import trio.testing

from pggit_reactor.core.model import FailureKind
from pggit_reactor.delivery.failures import AttemptError
from pggit_reactor.delivery.resolver import ResolverLimits, SystemResolver


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

    def look(self, host: str) -> list[str]:
        with self._lock:
            self.asked[host] += 1
            self.running += 1
            self.idle.clear()
            self.running_max = max(self.running_max, self.running)
        try:
            if gate := self.gates.get(host):
                assert gate.wait(30), "a test forgot to let go"
            return ["192.0.2.1"]
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


async def test_a_name_has_one_thread_whatever_the_ports(names):
    names.hold("one.example")
    resolver = SystemResolver(look=names.look)

    async with trio.open_nursery() as nursery:
        for port in range(1, 50):
            nursery.start_soon(resolver.resolve, "one.example", port)
        await trio.testing.wait_all_tasks_blocked()
        await until(lambda: names.running == 1)  # Threads begin when they like.
        names.release()

    assert (names.asked["one.example"], names.running_max) == (1, 1)


async def test_threads_are_bounded_and_the_rest_waits_its_turn(names):
    hosts = [f"{number}.example" for number in range(10)]
    for host in hosts:
        names.hold(host)
    resolver = SystemResolver(limits=ResolverLimits(new_threads=3), look=names.look)

    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(resolver.resolve, host, 1)
        await trio.testing.wait_all_tasks_blocked()
        names.release()

    assert sum(names.asked.values()) == 10
    assert names.running_max <= 3


async def failure(resolver: SystemResolver, host: str) -> str:
    with pytest.raises(AttemptError) as caught:
        await resolver.resolve(host, 1)
    assert caught.value.failure.kind is FailureKind.DNS
    return caught.value.failure.detail


async def test_a_name_that_hangs_fails_at_the_resolver_s_own_deadline(names):
    names.hold("slow.example")
    resolver = SystemResolver(limits=ResolverLimits(look_up_seconds=0.05), look=names.look)

    assert await failure(resolver, "slow.example") == "slow.example: the look-up took longer than 0.05 s"


async def test_a_name_that_never_got_a_thread_says_that_it_waited(names):
    names.hold("slow.example")
    resolver = SystemResolver(limits=ResolverLimits(new_threads=1, look_up_seconds=0.05), look=names.look)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(failure, resolver, "slow.example")
        await trio.testing.wait_all_tasks_blocked()
        assert await failure(resolver, "next.example") == (
            "next.example: the look-up waited for others longer than 0.05 s"
        )


QUICK_TO_JUDGE = ResolverLimits(
    quick_threads=2,
    new_threads=2,
    slow_threads=2,
    abandoned_threads=4,
    slow_after_seconds=0.05,
    look_up_seconds=30,
)


async def test_hanging_names_never_stop_one_that_is_known_to_be_quick(names):
    """More of them than there are threads in all, and nobody gives any of them up."""
    resolver = SystemResolver(limits=QUICK_TO_JUDGE, look=names.look)
    await resolver.resolve("quick.example", 1)
    hostile = [f"hostile-{number}.example" for number in range(40)]
    for host in hostile:
        names.hold(host)

    async with trio.open_nursery() as nursery:
        for host in hostile:
            nursery.start_soon(resolver.resolve, host, 1)
        await until(lambda: names.running == 2 + 4)
        for _ in range(3):
            assert await resolver.resolve("quick.example", 1) == ("192.0.2.1",)
        assert names.running_max <= 2 + 2 + 2 + 4
        names.release()


async def test_a_name_that_hangs_loses_its_place_to_the_next(names):
    """Nobody knew them: at first they are equals, and the hanging ones are found out."""
    resolver = SystemResolver(limits=QUICK_TO_JUDGE, look=names.look)
    hanging = ["a.example", "b.example"]
    for host in hanging:
        names.hold(host)

    async with trio.open_nursery() as nursery:
        for host in hanging:
            nursery.start_soon(resolver.resolve, host, 1)
        await until(lambda: names.running == 2)
        assert await resolver.resolve("c.example", 1) == ("192.0.2.1",)
        names.release()


async def test_a_name_is_slow_though_everybody_who_asked_has_given_up(names):
    """An attempt's own deadline is shorter than the resolver's: it is the look-up that tells, not the asker."""
    resolver = SystemResolver(limits=QUICK_TO_JUDGE, look=names.look)
    names.hold("a.example")
    names.hold("b.example")
    with trio.move_on_after(0.01):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resolver.resolve, "a.example", 1)
            nursery.start_soon(resolver.resolve, "b.example", 1)

    assert await resolver.resolve("c.example", 1) == ("192.0.2.1",)


async def test_slow_names_leave_the_lane_of_new_ones_alone(names):
    resolver = SystemResolver(
        limits=attrs.evolve(QUICK_TO_JUDGE, slow_threads=1, abandoned_threads=1), look=names.look
    )
    slow = ["a.example", "b.example"]
    for host in slow:  # each is found out in turn: its look-up takes longer than expected, and ends
        gate = names.hold(host)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resolver.resolve, host, 1)
            await until(lambda host=host: names.asked[host] == 1)
            await trio.sleep(2 * QUICK_TO_JUDGE.slow_after_seconds)
            gate.set()
    for host in slow:
        names.gates[host] = threading.Event()

    async with trio.open_nursery() as nursery:
        for host in slow:
            nursery.start_soon(resolver.resolve, host, 1)
        await until(lambda: names.running == 1)
        await trio.sleep(2 * QUICK_TO_JUDGE.slow_after_seconds)
        assert names.running == 1, "slow names wait for each other"
        assert await resolver.resolve("new.example", 1) == ("192.0.2.1",)
        names.release()


async def test_a_slow_name_that_recovers_is_like_any_other(names):
    gate = names.hold("one.example")
    resolver = SystemResolver(
        limits=attrs.evolve(QUICK_TO_JUDGE, slow_threads=1, look_up_seconds=0.1), look=names.look
    )
    await failure(resolver, "one.example")
    gate.set()

    for _ in range(3):
        assert await resolver.resolve("one.example", 1) == ("192.0.2.1",)


async def test_the_queue_is_bounded_too(names):
    resolver = SystemResolver(limits=ResolverLimits(new_threads=1, queued=2), look=names.look)
    hosts = [f"{number}.example" for number in range(3)]
    for host in hosts:
        names.hold(host)

    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(resolver.resolve, host, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert await failure(resolver, "more.example") == "more.example: too many look-ups wait already"
        names.release()


async def test_a_look_up_that_nobody_waits_for_any_more_is_not_begun(names):
    gate = names.hold("first.example")
    resolver = SystemResolver(limits=ResolverLimits(new_threads=1), look=names.look)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(resolver.resolve, "first.example", 1)
        await trio.testing.wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await resolver.resolve("gone.example", 1)
        gate.set()
    await resolver.resolve("last.example", 1)

    assert names.asked["gone.example"] == 0


async def test_look_ups_take_none_of_the_threads_of_the_rest_of_the_program(names):
    resolver = SystemResolver(look=names.look)
    hosts = [f"{number}.example" for number in range(100)]
    for host in hosts:
        names.hold(host)

    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(resolver.resolve, host, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        with trio.fail_after(5):
            await trio.to_thread.run_sync(lambda: None)
        names.release()


async def until(condition) -> None:
    with trio.fail_after(10):
        while not condition():  # noqa: ASYNC110  # threads tell no event of Trio's
            await trio.sleep(0.005)


async def test_more_addresses_than_anybody_has_are_refused():
    resolver = SystemResolver(look=lambda _host: [f"192.0.2.{number}" for number in range(65)])

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
    def look(_host: str) -> list[str]:
        raise socket.gaierror(socket.EAI_AGAIN, "whatever")

    async def main() -> None:
        with pytest.raises(AttemptError) as caught:
            await SystemResolver(look=look).resolve("one.example", 1)
        assert caught.value.failure.detail == "one.example: the name server does not answer for now"

    trio.run(main)
