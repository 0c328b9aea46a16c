"""The tables of the pages say what the code says: states, outcomes, reasons, waits, log events, metrics, columns."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from pggit_reactor.config.legacy import HONOURED
from pggit_reactor.core.backoff import Backoff
from pggit_reactor.core.model import Answer, AttemptFailure, FailedReason, FailureKind
from pggit_reactor.core.outcomes import classify
from pggit_reactor.core.states import TRANSITIONS
from pggit_reactor.observability.metrics import Metrics

ROOT = Path(__file__).parents[3]
LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception", "level"}
UNIT_SECONDS = {"h": 3600, "min": 60, "s": 1}


def table(page: str, first_heading: str) -> list[list[str]]:
    """Return the rows of the table of *page* whose first column is called *first_heading*."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith(f"| {first_heading} |")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def code(cell: str) -> str:
    """Return the text that *cell* shows as code."""
    return cell.strip("`")


def test_the_table_of_states_is_the_state_machine():
    shown = {
        (code(origin), code(event)): code(target)
        for origin, event, target in table("life-of-a-delivery.md", "from")
    }

    assert shown == {(s, e): target for s, events in TRANSITIONS.items() for e, target in events.items()}


def test_every_reason_of_a_dead_delivery_is_explained():
    assert [code(row[0]) for row in table("life-of-a-delivery.md", "reason")].sort() == sorted(
        FailedReason
    ).sort()


def statuses(words: str) -> set[int]:
    """Return the statuses that a cell such as ``200 to 299, 410`` names."""
    found: set[int] = set()
    for low, high in re.findall(r"(\d{3})(?: to (\d{3}))?", words):
        found |= set(range(int(low), int(high or low) + 1))
    return found


def test_the_table_of_answers_is_how_they_are_classified():
    shown = {status: code(row[1]) for row in table("receivers.md", "answer") for status in statuses(row[0])
             if "Retry-After" not in row[0]}  # fmt: skip

    assert set(shown) == set(range(100, 600))
    assert shown == {status: classify(Answer(status=status)) for status in shown}


def test_a_503_with_retry_after_and_the_absence_of_an_answer_are_classified_as_shown():
    shown = {row[0]: code(row[1]) for row in table("receivers.md", "answer")}
    failure = AttemptFailure(kind=FailureKind.TIMEOUT, detail="")

    assert shown["503 with `Retry-After`"] == classify(Answer(status=503, retry_after="7"))
    assert shown["none: name, connection, TLS, deadline, malformed answer"] == classify(failure)


def seconds(words: str) -> float:
    """Return what ``2 h 51 min`` is, as the middle of what it may have been rounded from."""
    return sum(
        float(number) * UNIT_SECONDS[unit] for number, unit in re.findall(r"([\d.]+) (h|min|s)\b", words)
    )


@pytest.mark.parametrize(
    "row", table("life-of-a-delivery.md", "attempts in all (`max_attempts`)"), ids=lambda row: row[0]
)
def test_the_waits_are_those_of_the_backoff(row):
    attempts = int(re.match(r"\d+", row[0])[0])
    least, most = row[1].split(" to ")
    if least[-1].isdigit():
        least += f" {most.split()[-1]}"  # "17.5 to 35 s"
    waits = [sum(Backoff().delay_seconds(n, draw) for n in range(1, attempts)) for draw in (0.0, 1 - 1e-12)]

    assert [seconds(least), seconds(most)] == pytest.approx(waits, abs=60, rel=0.01)


def logged_events() -> set[str]:
    """Return the first argument of every call of a log method that is a plain text."""
    found = set()
    for path in (ROOT / "pggit_reactor").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", None))
            first = node.args[0]
            if name in LOG_METHODS and isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(first.value)
    return found


def test_every_event_of_the_log_is_explained_and_no_other():
    events = logged_events()

    assert len(events) > 40
    assert {code(row[0]) for row in table("operations.md", "event")} == events


def test_every_metric_is_explained_and_no_other():
    families = Metrics(worker_id="w", version="0").collect()
    names = {f"{family.name}_total" if family.type == "counter" else family.name for family in families}
    own = {name for name in names if not name.startswith("process_")}
    fleet = {"pggit_reactor_worker_processes", "pggit_reactor_worker_process_restarts_total"}
    labels = {code(row[0]): row[1] for row in table("operations.md", "metric")}

    assert set(labels) == own | fleet | {"process_..."}
    assert labels["webhook_deliveries_total"] == "status, webhook_id"


def test_the_columns_that_a_producer_may_write_are_those_it_is_granted():
    (granted,) = re.findall(
        r"'INSERT \((.*?)\), SELECT \(delivery_id\)",
        (ROOT / "migrations/0001_delivery.sql").read_text(),
        re.DOTALL,
    )
    columns = set(re.findall(r"[a-z_]+", granted))
    plain = {"delivery_status", "retry_count", "created_at"}  # named in a sentence below the table

    assert {code(row[0]) for row in table("producers.md", "column")} == columns - plain


def test_every_table_of_the_schema_is_on_the_page():
    schema = "".join(path.read_text() for path in sorted((ROOT / "migrations").glob("*.sql")))
    made = set(re.findall(r"^CREATE TABLE (?:IF NOT EXISTS )?pggit\.(\w+) \(", schema, re.MULTILINE))
    dropped = set(re.findall(r"DROP TABLE pggit\.(\w+)", schema))

    assert {code(row[0]) for row in table("architecture.md", "table")} == made - dropped | {
        "schema_migration"
    }


def test_every_old_variable_that_is_read_is_named_to_those_who_come_from_pggit():
    shown = {code(row[0]) for row in table("migrate-from-pggit.md", "old variable")}

    assert shown == {*HONOURED, "DATABASE_URL", "all others"}


def test_everything_that_old_programs_use_is_named_to_those_who_come_from_pggit():
    """What migration 0001 adopts, and three that other migrations make where they are missing."""
    schema = (ROOT / "migrations/0001_delivery.sql").read_text()
    adopted = {
        name
        for kind in ("tables", "views", "functions")
        for name in re.findall(
            r"'(\w+)", re.search(rf"{kind} CONSTANT text\[\] := ARRAY\[(.*?)\];", schema, re.DOTALL)[1]
        )
    }
    shown = {code(row[0]) for row in table("migrate-from-pggit.md", "old name")}

    assert len(adopted) > 20
    assert shown == adopted | {"alert_routing_rules", "alert_observers", "trigger_queue_alert"}


def test_every_difference_on_purpose_has_its_number():
    rows = table("migrate-from-pggit.md", "number")

    assert [row[0] for row in rows] == [str(number) for number in range(1, 26)]


def test_every_room_is_on_the_page():
    rooms = {
        path.stem
        for path in (ROOT / "pggit_reactor").iterdir()
        if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    shown = {name for row in table("architecture.md", "room") for name in re.findall(r"`(\w+)`", row[0])}

    assert shown == rooms - {"__init__"}
