"""Signals as commands, with real signals to this very process."""

from __future__ import annotations

import os
import signal

import trio

from pggit_reactor.runtime.signals import Command, open_commands


def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


async def test_the_first_stop_signal_drains_and_every_further_one_aborts() -> None:
    received = []
    with open_commands() as commands:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGTERM):
            send(number)
            received.append(await commands.receive())

    assert received == [Command.DRAIN, Command.ABORT, Command.ABORT]


async def test_sighup_reloads_and_does_not_count_as_a_stop() -> None:
    received = []
    with open_commands() as commands:
        for number in (signal.SIGHUP, signal.SIGHUP, signal.SIGTERM, signal.SIGHUP):
            send(number)
            received.append(await commands.receive())

    assert received == [Command.RELOAD, Command.RELOAD, Command.DRAIN, Command.RELOAD]


async def test_commands_can_be_iterated() -> None:
    with open_commands() as commands:
        send(signal.SIGTERM)
        async for command in commands:
            assert command is Command.DRAIN
            break


async def test_cancelling_a_wait_loses_no_signal() -> None:
    with open_commands() as commands:
        with trio.move_on_after(0):
            await commands.receive()
        send(signal.SIGTERM)
        with trio.fail_after(5):
            assert await commands.receive() is Command.DRAIN


async def test_the_former_meaning_of_the_signals_comes_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    with open_commands():
        pass

    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before
