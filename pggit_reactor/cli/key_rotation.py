"""What `key rotate` does and prints."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import attrs
import click

from pggit_reactor.cli.output import print_json
from pggit_reactor.core.resealing import Progress
from pggit_reactor.db.resealing import (
    HEARING_SECONDS_MAX,
    RATE_DEFAULT,
    RELOADING_SECONDS_MAX,
    Resealed,
    Resealing,
    check_workers,
    exclusive_rotation,
    retire_keys,
)
from pggit_reactor.errors import RotationError

if TYPE_CHECKING:
    from pggit_reactor.cli.session import Session

_SAY_SECONDS: Final = 1.0


async def rotate_keys(
    session: Session, *, rate: float | None, retire: bool, force: bool, as_json: bool
) -> None:
    """Seal all anew with the active key, and print how it goes on standard error."""
    active_id = session.keyring.active_id
    async with (
        session.open_database(seconds=math.inf) as guard,
        session.open_database(seconds=math.inf) as connection,
        exclusive_rotation(guard),
    ):
        if not force:
            # Before the key is registered: from then on a worker without it does not start.
            await check_workers(guard, active_id, patience=RELOADING_SECONDS_MAX)
        sealer = await session.open_sealer(connection)
        if not force:
            await check_workers(guard, active_id, patience=HEARING_SECONDS_MAX)
        run = Resealing(
            connection=connection,
            guard=guard,
            sealer=sealer,
            by=session.actor,
            rate=rate or RATE_DEFAULT,
            force=force,
            on_progress=_Teller(),
        )
        done = await run.run()
        retired = await retire_keys(connection, active_id=active_id, by=session.actor) if retire else ()
    _say(done, retired, as_json=as_json)
    if done.left:
        raise RotationError(_complaint(done))


def _say(done: Resealed, retired: tuple[str, ...], *, as_json: bool) -> None:
    if as_json:
        print_json({**attrs.asdict(done), "retired": retired})
        return
    click.echo(f"sealed {done.done} values anew with {done.key_id!r} in {done.seconds:.1f} s")
    for key_id in retired:
        click.echo(f"retired {key_id!r}: its line may go from the key files")


def _complaint(done: Resealed) -> str:
    if done.unopened:
        return f"{done.left} values still need another key; what does not open: {'; '.join(done.unopened)}"
    return (
        f"{done.left} values still need another key: somebody seals with it or holds their rows locked; make "
        f"{done.key_id!r} the first line of every key file, and run it again"
    )


class _Teller:
    """Says how far it is, at most once a second and at the end."""

    def __init__(self) -> None:
        self._said_at = -math.inf

    def __call__(self, progress: Progress) -> None:
        if progress.elapsed_seconds - self._said_at < _SAY_SECONDS and progress.left:
            return
        self._said_at = progress.elapsed_seconds
        left = progress.left_seconds
        eta = "" if left is None else f", {left:.0f} s left"
        click.echo(f"{progress.done} of {progress.total} values ({progress.share:.0%}){eta}", err=True)
