"""What a newcomer does first: clone, and one command, in an environment that holds nothing of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long  # installs everything, twice

ROOT = Path(__file__).parents[2]
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    target = tmp_path / "a clone with spaces"
    git = ["git", "-c", "safe.directory=*", "clone", "--quiet", "--no-hardlinks"]
    subprocess.run([*git, ROOT, target], check=True)
    return target


def dev(clone: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run `./dev` with the Python of this test in an environment that only says where packages come from."""
    home = clone.parent / "home"
    home.mkdir(exist_ok=True)
    source = {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    environ = {"PATH": SYSTEM_PATH, "HOME": str(home), **source}
    command = [getattr(sys, "_base_executable", sys.executable), clone / "dev", *words]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=False)


def test_a_clean_clone_installs_what_the_product_needs_and_then_starts_at_once(clone: Path) -> None:
    first = dev(clone, "run", "--version")
    second = dev(clone, "run", "--version")

    assert first.returncode == 0, first.stderr
    assert "installing requirements/run.txt" in first.stderr
    assert first.stdout == second.stdout
    assert second.stderr == ""


def test_a_clean_clone_runs_its_tests_by_one_command(clone: Path) -> None:
    done = dev(clone, "test", "tests/unit/house/test_links.py")

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed in " in done.stdout.splitlines()[-1]


def test_nothing_that_was_installed_shows_in_the_clone(clone: Path) -> None:
    dev(clone, "setup")
    status = subprocess.run(["git", "-C", clone, "status", "--short"], check=True, capture_output=True)

    assert status.stdout == b""
