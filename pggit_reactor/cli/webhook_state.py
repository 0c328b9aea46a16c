"""`webhook pause`, `resume`, `disable`, `enable`, `reset`: whether a webhook is sent to at all."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import click

from pggit_reactor.cli.moments import MOMENT
from pggit_reactor.cli.parameters import webhook_argument
from pggit_reactor.cli.session import Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pggit_reactor.db.connect import TrioConnection

_reason = click.option("--reason", metavar="TEXT", help="Why, for whoever wonders; it is kept and audited.")


@click.command()
@webhook_argument
@click.option(
    "--until", type=MOMENT, metavar="T", help="A time (2030-01-31T18:00+01:00), or 90m, 2h, 7d from now."
)
@_reason
@pass_session
def pause(session: Session, which: int | str, until: float | datetime | None, reason: str | None) -> None:
    """Stop deliveries to a webhook, for a time or until it is resumed.

    Workers stop at once; attempts under way are finished, and what is queued waits.

    \b
    Example: pggit-reactor webhook pause alerts --until 2h --reason "their maintenance"
    """
    from pggit_reactor.db.operations import pause_webhook

    _change(
        session, which,
        lambda connection, webhook_id: pause_webhook(
            connection, webhook_id, until=until, reason=reason, by=session.actor
        ),
    )  # fmt: skip


@click.command()
@webhook_argument
@pass_session
def resume(session: Session, which: int | str) -> None:
    """End the pause of a webhook; what waited is delivered at once.

    \b
    Example: pggit-reactor webhook resume alerts
    """
    from pggit_reactor.db.operations import resume_webhook

    _change(
        session,
        which,
        lambda connection, webhook_id: resume_webhook(connection, webhook_id, by=session.actor),
    )


@click.command()
@webhook_argument
@_reason
@pass_session
def disable(session: Session, which: int | str, reason: str | None) -> None:
    """Take a webhook out of service until it is enabled.

    What is queued waits, as in a pause; alerts that are published pass it over.

    \b
    Example: pggit-reactor webhook disable alerts --reason "the team is gone"
    """
    from pggit_reactor.db.operations import disable_webhook

    _change(
        session, which,
        lambda connection, webhook_id: disable_webhook(connection, webhook_id, reason=reason, by=session.actor),
    )  # fmt: skip


@click.command()
@webhook_argument
@pass_session
def enable(session: Session, which: int | str) -> None:
    """Put a disabled webhook back to work; what waited is delivered at once.

    \b
    Example: pggit-reactor webhook enable alerts
    """
    from pggit_reactor.db.operations import enable_webhook

    _change(
        session,
        which,
        lambda connection, webhook_id: enable_webhook(connection, webhook_id, by=session.actor),
    )


@click.command()
@webhook_argument
@_reason
@pass_session
def reset(session: Session, which: int | str, reason: str | None) -> None:
    """Close a webhook's circuit breaker and forget its failures; it is sent to at once.

    Ends its receiver's Retry-After and a slow start too. A receiver that is still ill opens the breaker again after
    5 failures.

    \b
    Example: pggit-reactor webhook reset alerts --reason "they have mended it"
    """
    from pggit_reactor.db.operations import reset_webhook

    _change(
        session, which,
        lambda connection, webhook_id: reset_webhook(connection, webhook_id, reason=reason, by=session.actor),
    )  # fmt: skip


def _change(session: Session, which: int | str, act: Callable[[TrioConnection, int], Awaitable[str]]) -> None:
    async def change() -> str:
        async with session.open_database() as connection:
            return await act(connection, await session.webhook_id(connection, which))

    click.echo(session.run(change))
