"""`delivery replay`, `requeue`, `cancel`: what people do to deliveries, one or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from pggit_reactor.cli.exits import Exit, exit_of
from pggit_reactor.cli.session import Session, pass_session
from pggit_reactor.errors import DatabaseUnavailableError, ReactorError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pggit_reactor.db.connect import TrioConnection

_deliveries = click.argument("which", metavar="ID...", nargs=-1, required=True)


@click.command()
@_deliveries
@pass_session
def replay(session: Session, which: tuple[str, ...]) -> int:
    """Send delivered or failed deliveries again.

    The same body goes out under the same uid, so that a receiver can tell it from a new one; all retries are
    before it. ID is a delivery id, or the uid that its receiver saw.

    \b
    Example: pggit-reactor delivery replay 7 8
    """
    from pggit_reactor.db.operations import replay_delivery

    return _change(session, which, lambda connection, one: replay_delivery(connection, one, by=session.actor))


@click.command()
@_deliveries
@pass_session
def requeue(session: Session, which: tuple[str, ...]) -> int:
    """Make pending, retrying or failed deliveries due now, all retries before them.

    \b
    Example: pggit-reactor delivery requeue 7
    """
    from pggit_reactor.db.operations import requeue_delivery

    return _change(
        session, which, lambda connection, one: requeue_delivery(connection, one, by=session.actor)
    )


@click.command()
@_deliveries
@click.option("--reason", metavar="TEXT", help="Why, for whoever wonders; it is kept and audited.")
@pass_session
def cancel(session: Session, which: tuple[str, ...], reason: str | None) -> int:
    """End deliveries that are not settled yet.

    They are failed, with the reason `cancelled`. One that a worker is just sending may arrive all the same.

    \b
    Example: pggit-reactor delivery cancel 7 --reason "sent by hand"
    """
    from pggit_reactor.db.operations import cancel_delivery

    return _change(
        session, which,
        lambda connection, one: cancel_delivery(connection, one, reason=reason, by=session.actor),
    )  # fmt: skip


def _change(
    session: Session, which: tuple[str, ...], act: Callable[[TrioConnection, str], Awaitable[str]]
) -> int:
    """Do it to each, in a transaction of its own; one that cannot be does not stop the others."""

    async def change() -> Exit:
        worst = Exit.DONE
        async with session.open_database() as connection:
            for one in which:
                try:
                    click.echo(await act(connection, one))
                except DatabaseUnavailableError:
                    raise
                except ReactorError as error:
                    click.echo(f"error: {error}", err=True)
                    worst = max(worst, exit_of(error))
        return worst

    return session.run(change)
