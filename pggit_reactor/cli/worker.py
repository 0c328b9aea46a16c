"""`worker`: one worker in this process, or a supervisor of several."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click

from pggit_reactor.cli.session import Session, pass_session

if TYPE_CHECKING:
    from pggit_reactor.config.settings import Settings


@click.command()
@click.option(
    "--processes",
    type=click.IntRange(1, 256),
    metavar="N",
    help="Workers under one supervisor, one core each; by default the setting worker.processes (1).",
)
@pass_session
def worker(session: Session, processes: int | None) -> int:
    """Deliver what is in the queue, until told to stop.

    SIGTERM or Ctrl-C: stop claiming, finish what is being sent, exit 0. A second one: give everything back and
    exit 1. SIGHUP: read configuration and keys again. Serves /metrics, /health and /ready (settings
    metrics.host and metrics.port; with --processes one port for all).

    \b
    Example: pggit-reactor worker --processes 2
    """
    settings = session.load(processes=processes)
    if settings.worker.processes > 1:
        return _supervise(session, settings)
    from pggit_reactor.app import run_worker

    return session.run(lambda: run_worker(settings, reread=lambda: session.load(processes=processes)))


def _supervise(session: Session, settings: Settings) -> int:
    from pggit_reactor.observability.logs import configure_logging
    from pggit_reactor.runtime.processes import run_processes

    configure_logging(
        level=settings.log.level,
        log_format=None if settings.log.format == "auto" else settings.log.format,
        worker_id=settings.worker.worker_id,
    )
    command = [sys.executable, "-m", "pggit_reactor", *session.global_options(), "worker", "--processes", "1"]
    return session.run(
        lambda: run_processes(
            settings.worker.processes,
            command=command,
            environ=os.environ,
            worker_id=settings.worker.worker_id,
            host=settings.metrics.host,
            port=settings.metrics.port,
            drain_seconds=settings.worker.drain_seconds,
        )
    )
