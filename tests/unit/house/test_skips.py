"""The rule of tests/conftest.py, on small suites of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]


def run_suite(folder: Path, suite: str, skips: str = "skip = []") -> subprocess.CompletedProcess[str]:
    """Run *suite* in *folder* under the real conftest.py and the list *skips*."""
    shutil.copy(TESTS / "conftest.py", folder / "conftest.py")
    (folder / "skips.toml").write_text(skips)
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_suite.py").write_text(f"import pytest\n\n{suite}")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"]
    environ = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environ.pop("PYTEST_ADDOPTS", None)
    return subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)


SKIP = "pytest.skip('the tool is missing')"
SKIPS_IN_ITS_BODY = f"def test_it():\n    {SKIP}\n"


@pytest.mark.parametrize(
    "suite",
    [
        SKIPS_IN_ITS_BODY,
        "@pytest.mark.skip(reason='the tool is missing')\ndef test_it():\n    pass\n",
        "@pytest.mark.skipif(True, reason='the tool is missing')\ndef test_it():\n    pass\n",
        f"@pytest.fixture\ndef tool():\n    {SKIP}\n\ndef test_it(tool):\n    pass\n",
        "pytest.skip('the tool is missing', allow_module_level=True)\n",
    ],
    ids=["body", "mark", "condition", "fixture", "module"],
)
def test_a_skip_that_is_not_named_fails_the_run(tmp_path: Path, suite: str) -> None:
    done = run_suite(tmp_path, suite)

    assert done.returncode != 0
    assert "skipped without leave: 'the tool is missing'" in done.stdout


def named(test: str, reason: str) -> str:
    return f'[[skip]]\ntest = "{test}"\nreason = "{reason}"\nwhy = "an outside tool"\n'


@pytest.mark.parametrize("test", ["test_suite.py::test_it", "test_suite.py::*"])
def test_a_skip_that_is_named_with_its_reason_is_accepted(tmp_path: Path, test: str) -> None:
    done = run_suite(tmp_path, SKIPS_IN_ITS_BODY, named(test, "the tool is missing"))

    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout


@pytest.mark.parametrize(
    ("test", "reason"),
    [("test_suite.py::test_it", "another reason"), ("test_suite.py::test_other", "the tool is missing")],
)
def test_a_name_without_the_reason_or_a_reason_without_the_name_is_not_enough(
    tmp_path: Path, test: str, reason: str
) -> None:
    done = run_suite(tmp_path, SKIPS_IN_ITS_BODY, named(test, reason))

    assert done.returncode != 0


def test_an_expected_failure_is_not_a_skip(tmp_path: Path) -> None:
    done = run_suite(tmp_path, "@pytest.mark.xfail(run=False)\ndef test_it():\n    pass\n")

    assert done.returncode == 0, done.stdout


def test_a_brackets_name_of_a_parameter_means_itself(tmp_path: Path) -> None:
    suite = "@pytest.mark.parametrize('n', [1, 2])\ndef test_it(n):\n    pytest.skip('no')\n"

    done = run_suite(tmp_path, suite, named("test_suite.py::test_it[1]", "no"))

    assert "1 failed, 1 skipped" in done.stdout


def test_each_named_skip_belongs_to_a_test_that_exists() -> None:
    entries = tomllib.loads((TESTS / "skips.toml").read_text())["skip"]
    unknown = [entry["test"] for entry in entries if not names_a_test(entry["test"])]

    assert unknown == []


def names_a_test(pattern: str) -> bool:
    path, _, name = pattern.partition("::")
    file = TESTS.parent / path
    function = re.match(r"\w*", name).group()
    return file.is_file() and (name == "*" or f"def {function}" in file.read_text())
