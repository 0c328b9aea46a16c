"""Logging: events with names and fields, as JSON or for a terminal, on standard error.

``log.info("http_listening", port=8000)``: the event is a name to search for, what varies is a field. Every
event passes `redaction.redact`. What libraries log through the standard library comes the same way, from
WARNING up (below that, httpx logs the URL of each request). Tracebacks are text, without local variables:
those hold payloads and secrets.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, MutableMapping
from typing import Final, cast

import structlog
from structlog.typing import FilteringBoundLogger, Processor

from pggit_reactor.errors import ConfigurationError
from pggit_reactor.observability.line_writer import LineSink, LineWriter
from pggit_reactor.observability.redaction import redact

Logger = FilteringBoundLogger

LEVELS: Final[Mapping[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}
FORMATS: Final = ("json", "console")
LIBRARY_LEVEL: Final = logging.WARNING


def get_logger(room: str) -> Logger:
    """Return the logger of *room*; it follows `configure_logging`, before or after.

    Where a switched-off debug event must cost 0.3 microseconds instead of 3, ``bind()`` it once, after that.
    """
    return cast("Logger", structlog.get_logger(room=room))


def configure_logging(
    *,
    level: str = "info",
    log_format: str | None = None,
    worker_id: str | None = None,
    sink: LineSink | None = None,
) -> None:
    """Send the events of this process to standard error, or to *sink*.

    *level* is one of `LEVELS` in any case (`warn` and `fatal` too), *log_format* ``json``, ``console`` or
    None: console on a terminal, else JSON. Anything else is a `ConfigurationError`. May be called again.
    """
    number = parse_level(level)
    writer = LineWriter() if sink is None else sink
    renderer = _renderer(log_format)
    structlog.configure(
        processors=[*_processors(worker_id, writer), renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=lambda *_: _LineLogger(writer),
        cache_logger_on_first_use=False,  # so that a second call reaches loggers that were used before
    )
    _route_libraries()


def parse_level(text: str) -> int:
    """Return the number of the level named *text*, in any case."""
    name = text.strip().lower()
    name = {"warn": "warning", "fatal": "critical"}.get(name, name)
    if name not in LEVELS:
        allowed = ", ".join(LEVELS)
        raise ConfigurationError(f"log level {text!r} is unknown; allowed: {allowed} (setting log.level)")
    return LEVELS[name]


class _LineLogger:
    """What structlog calls with the rendered line; a method for each level."""

    def __init__(self, sink: LineSink) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = self.msg = sink.write_line
        self.exception = self.fatal = self.warn = self.failure = self.err = self.log = sink.write_line


def _processors(worker_id: str | None, sink: LineSink) -> list[Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        _Bind(worker_id, sink),
        structlog.processors.format_exc_info,
        cast("Processor", redact),
    ]


class _Bind:
    """Adds the worker's id and what was lost; a processor, so that threads and library logs have them too."""

    def __init__(self, worker_id: str | None, sink: LineSink) -> None:
        self._worker_id = worker_id
        self._sink = sink

    def __call__(
        self, _logger: object, _method: str, event: MutableMapping[str, object]
    ) -> MutableMapping[str, object]:
        if self._worker_id is not None:
            event.setdefault("worker_id", self._worker_id)
        if self._sink.dropped:
            event["lines_dropped"] = self._sink.dropped
        return event


def _renderer(log_format: str | None) -> Processor:
    chosen = (log_format or "").strip().lower() or ("console" if sys.stderr.isatty() else "json")
    if chosen == "json":
        return structlog.processors.JSONRenderer(serializer=_to_json)
    if chosen == "console":
        colors = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        # Tracebacks are text by now (format_exc_info). The default here is rich's, with local variables.
        plain = structlog.dev.plain_traceback
        return structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, timestamp_key="time")
    raise ConfigurationError(
        f"log format {log_format!r} is unknown; allowed: {', '.join(FORMATS)} (setting log.format)"
    )


def _to_json(event: Mapping[str, object], **_: object) -> str:
    return json.dumps(event, ensure_ascii=False, separators=(",", ":"))


class _LibraryHandler(logging.Handler):
    """Passes a library's record on as an event ``library_log``."""

    def emit(self, record: logging.LogRecord) -> None:
        level = max(record.levelno // 10 * 10, LIBRARY_LEVEL)
        log = get_logger(record.name)
        log.log(level, "library_log", message=_message(record), exc_info=record.exc_info)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError) as error:  # a record whose arguments do not fit its text
        return f"{record.msg} ({error})"


def _route_libraries() -> None:
    root = logging.getLogger()
    for handler in list(root.handlers):
        if isinstance(handler, _LibraryHandler):
            root.removeHandler(handler)
    root.addHandler(_LibraryHandler(LIBRARY_LEVEL))
    root.setLevel(LIBRARY_LEVEL)
    logging.captureWarnings(True)
