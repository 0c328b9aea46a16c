"""The rules of the whole suite: no test is skipped unless `skips.toml` names it with its reason.

A skip is how a test stops testing without anybody noticing: a tool is missing, and the suite is green. So the
skips that are acceptable are listed, and every other one is turned into a failure. Expected failures are not
skips; pytest is strict about them by itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Generator
from fnmatch import fnmatchcase
from pathlib import Path

import attrs
import pytest

SKIPS_FILE = Path(__file__).with_name("skips.toml")


@attrs.frozen(kw_only=True)
class AllowedSkip:
    test: str
    reason: str
    why: str

    def covers(self, nodeid: str, reason: str) -> bool:
        return self.reason == reason and fnmatchcase(nodeid, self.test.replace("[", "[[]"))


class SkipRule:
    """Turns each skip that is not allowed into a failure."""

    def __init__(self, allowed: tuple[AllowedSkip, ...]) -> None:
        self._allowed = allowed

    def judge(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if not report.skipped or hasattr(report, "wasxfail"):
            return
        reason = skip_reason(report)
        if any(skip.covers(report.nodeid, reason) for skip in self._allowed):
            return
        report.outcome = "failed"
        report.longrepr = f"skipped without leave: {reason!r}; name it in tests/skips.toml, or make it run"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        self.judge(report)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
        report = yield
        self.judge(report)
        return report


def skip_reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return what was said when the test was skipped."""
    assert isinstance(report.longrepr, tuple)
    return report.longrepr[2].removeprefix("Skipped: ")


def read_allowed_skips() -> tuple[AllowedSkip, ...]:
    entries = tomllib.loads(SKIPS_FILE.read_text(encoding="utf-8"))["skip"]
    return tuple(AllowedSkip(**entry) for entry in entries)


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(SkipRule(read_allowed_skips()), "skip-rule")
