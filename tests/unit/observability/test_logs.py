"""Log events: their shape, their routes and what never gets into them."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest
import structlog

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError
from pggit_reactor.observability import logs
from pggit_reactor.observability.logs import configure_logging, get_logger, parse_level


class Lines:
    """A sink that keeps what it gets, and can pretend to have lost some."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.dropped = 0

    def write_line(self, line: str) -> None:
        self.lines.append(line)

    def events(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def lines() -> Iterator[Lines]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    sink = Lines()
    configure_logging(log_format="json", worker_id="w-1", sink=sink)
    yield sink
    structlog.reset_defaults()
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)


def test_an_event_is_one_json_line_with_name_time_level_worker_and_fields(lines: Lines) -> None:
    get_logger("http").info("http_listening", port=8000)

    (event,) = lines.events()
    assert event.pop("time")
    assert event == {
        "event": "http_listening",
        "port": 8000,
        "level": "info",
        "room": "http",
        "worker_id": "w-1",
    }


def test_times_are_iso_8601_in_utc(lines: Lines) -> None:
    get_logger("x").info("e")

    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", str(lines.events()[0]["time"]))


def test_a_logger_made_before_configuration_follows_it(lines: Lines) -> None:
    log = get_logger("early")
    log.debug("quiet")
    configure_logging(level="DEBUG", log_format="json", sink=lines)
    log.debug("loud")

    assert [event["event"] for event in lines.events()] == ["loud"]


@pytest.mark.parametrize(("text", "number"), [("info", 20), ("INFO", 20), (" Warning ", 30), ("warn", 30)])
def test_a_level_is_known_in_any_case(text: str, number: int) -> None:
    assert parse_level(text) == number


def test_wrong_settings_are_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigurationError, match=r"'loud'.*debug, info.*log\.level"):
        configure_logging(level="loud")
    with pytest.raises(ConfigurationError, match=r"'xml'.*json, console.*log\.format"):
        configure_logging(log_format="xml")


def test_console_lines_are_for_people_and_hold_no_colours_off_a_terminal(lines: Lines) -> None:
    configure_logging(log_format="console", worker_id="w-1", sink=lines)
    get_logger("http").warning("something_odd", count=3)

    assert "something_odd" in lines.lines[0]
    assert "count=3" in lines.lines[0]
    assert "\x1b[" not in lines.lines[0]


def test_the_default_off_a_terminal_is_json(lines: Lines) -> None:
    assert not sys.stderr.isatty()
    configure_logging(sink=lines)
    get_logger("x").info("e")

    assert lines.events()[0]["event"] == "e"


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_is_text_without_local_variables(lines: Lines, log_format: str) -> None:
    configure_logging(log_format=log_format, sink=lines)

    def fail() -> None:
        payload = "the payload " + "of an alert"
        raise RuntimeError(f"failed with {len(payload)} characters")

    try:
        fail()
    except RuntimeError:
        get_logger("x").exception("loop_failed")

    (line,) = lines.lines
    assert "RuntimeError: failed with 23 characters" in line
    assert "in fail" in line
    assert "the payload of an alert" not in line


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_no_secret_passes_in_field_event_or_traceback(lines: Lines, log_format: str) -> None:
    configure_logging(log_format=log_format, sink=lines)
    log = get_logger("x")
    log.info(
        "connecting to postgresql://u:hunter2@h/d", dsn=Secret("hunter2"), url="postgresql://u:hunter2@h/d"
    )
    try:
        raise OSError("postgresql://u:hunter2@h/d refused")
    except OSError as error:
        log.exception("lost", error=error)
    logging.getLogger("psycopg").error("cannot use %s", "postgresql://u:hunter2@h/d")

    assert len(lines.lines) == 3
    assert "hunter2" not in "\n".join(lines.lines)
    assert "postgresql://u:<secret>@h/d" in lines.lines[2]


def test_libraries_are_heard_from_warning_up_even_at_debug(lines: Lines) -> None:
    configure_logging(level="debug", log_format="json", sink=lines)
    logging.getLogger("httpx").info("HTTP Request: POST https://hooks.example.com/secret")
    logging.getLogger("psycopg.pool").warning("rolling back %s", "x")
    logging.getLogger("trio").error("crash", exc_info=ValueError("why"))

    one, other = lines.events()
    assert (one["event"], one["level"], one["room"]) == ("library_log", "warning", "psycopg.pool")
    assert one["message"] == "rolling back x"
    assert "ValueError: why" in str(other["exception"])


def test_a_library_record_that_does_not_fit_its_arguments_is_logged_all_the_same(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = logging.getLogger()
    # pytest's own handlers raise for such a record, before ours is asked.
    monkeypatch.setattr(root, "handlers", [one for one in root.handlers if one.__module__ == logs.__name__])
    logging.getLogger("lib").error("%d rows", "many")

    assert str(lines.events()[0]["message"]).startswith("%d rows (")


def test_a_library_level_between_ours_is_rounded_down(lines: Lines) -> None:
    logging.getLogger("lib").log(35, "odd")

    assert lines.events()[0]["level"] == "warning"


def test_warnings_become_events(lines: Lines) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("old thing", DeprecationWarning, stacklevel=1)

    assert "old thing" in str(lines.events()[0]["message"])


def test_the_first_event_after_a_stall_says_how_many_were_lost(lines: Lines) -> None:
    lines.dropped = 7
    get_logger("x").info("back")

    assert lines.events()[0]["lines_dropped"] == 7


def test_configuring_twice_logs_once(lines: Lines) -> None:
    configure_logging(log_format="json", sink=lines)
    logging.getLogger("lib").error("once")

    assert len(lines.lines) == 1
