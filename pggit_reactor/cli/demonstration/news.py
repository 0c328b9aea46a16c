"""Waiting for a state that some task will bring about, with a limit and a name for what did not come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from pggit_reactor.errors import ReactorError

WAIT_SECONDS_MAX: Final = 20.0


class News:
    """Tells waiting tasks that something has changed."""

    def __init__(self) -> None:
        self._changed = trio.Event()

    def tell(self) -> None:
        """Make everybody who waits look again."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_until(self, condition: Callable[[], bool], *, what: str) -> None:
        """Return when *condition* holds; ReactorError naming *what* after `WAIT_SECONDS_MAX`."""
        with trio.move_on_after(WAIT_SECONDS_MAX):
            while not condition():
                await self._changed.wait()
        if not condition():
            raise ReactorError(f"the demo waited {WAIT_SECONDS_MAX:g} s in vain for {what}")
