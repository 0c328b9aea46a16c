"""``pggit-reactor demo``: the whole product on one page, with a worker that is killed in the middle of it."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Final

import click

from pggit_reactor.cli.exits import Exit
from pggit_reactor.cli.server_programs import require_server_programs

if TYPE_CHECKING:
    import trio

    from pggit_reactor.cli.demonstration.page import Page
    from pggit_reactor.cli.demonstration.story import Outcome

DEMO_SECONDS_MAX: Final = 55.0
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command(
    epilog="""\b
Example: pggit-reactor demo
Example: pggit-reactor demo | grep '^demo: ok'

Everything lies in one temporary folder and is removed at the end, also after Ctrl-C. No setting of this machine
is used but PGGIT_REACTOR_POSTGRES_BIN."""
)
def demo() -> int:
    """See it work: a database, a receiver, a worker and a crash."""
    import trio

    from pggit_reactor.cli.demonstration.page import Page
    from pggit_reactor.cli.demonstration.stage import postgres_folder
    from pggit_reactor.cli.libpq_variables import forget_libpq_variables

    require_server_programs(postgres_folder(os.environ))
    forget_libpq_variables(os.environ)
    reader_left = False
    outcome: Outcome | None = None
    try:
        outcome = trio.run(_run, Page())
    except* BrokenPipeError:
        reader_left = True
    if reader_left:
        raise BrokenPipeError  # alone, as whoever called us expects it
    return Exit.DONE if outcome is not None and outcome.good else Exit.FAILED


async def _run(page: Page) -> Outcome | None:
    """Tell the story; None where a signal ended it early. Everything that was started is gone afterwards."""
    import trio

    from pggit_reactor.errors import ReactorError

    outcome: Outcome | None = None
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(DEMO_SECONDS_MAX) as telling:
                stop = _Stop()
                nursery.start_soon(stop.obey, signals, telling)
                outcome = await _tell(page)
            # Only now: a second Ctrl-C while things are being stopped must not leave some behind.
            nursery.cancel_scope.cancel()
    if telling.cancelled_caught:
        if stop.name is None:
            raise ReactorError(f"the demo did not end within {DEMO_SECONDS_MAX:g} s")
        page.summary(f"demo: interrupted by {stop.name}; everything was stopped and removed", good=False)
    return outcome


class _Stop:
    """The signal that ended the telling, if one did."""

    def __init__(self) -> None:
        self.name: str | None = None

    async def obey(self, signals: AsyncIterator[int], telling: trio.CancelScope) -> None:
        async for number in signals:
            self.name = self.name or signal.Signals(number).name
            telling.cancel()


async def _tell(page: Page) -> Outcome:
    import trio

    from pggit_reactor.cli.demonstration.stage import open_stage, postgres_folder
    from pggit_reactor.cli.demonstration.story import Story
    from pggit_reactor.runtime.clock import SystemClock

    began = trio.current_time()
    clock = SystemClock()
    async with open_stage(bin_dir=postgres_folder(os.environ), clock=clock) as stage:
        outcome = await Story(page=page, stage=stage, clock=clock).tell()
    page.summary(outcome.line(trio.current_time() - began), good=outcome.good)
    return outcome
