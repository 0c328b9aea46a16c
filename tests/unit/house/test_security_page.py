"""SECURITY.md: each test that it names exists, and nobody and nothing is left out."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

NODE = re.compile(r"`(tests/[\w/.]+\.py)::(\w+)`")
ANY_PATH = re.compile(r"tests/[\w/.]+\.py(?:::\w*)?")
ATTACKERS = (
    "register webhooks",
    "A receiver",
    "A producer",
    "reads the database",
    "writes to the database",
    "The network",
    "Other tenants",
    "the packages",
)
CHECKLIST = (
    "HTTPS/TLS 1.2+",
    "HMAC-SHA256",
    "AES-256-GCM",
    "PBKDF2",
    "JWT",
    "Injection prevention",
    "Broken authentication",
    "Sensitive data exposure",
    "XML/API attack prevention",
    "Broken access control",
    "Security misconfiguration",
    "XSS prevention",
    "Insecure deserialization",
    "Using components with known vulnerabilities",
    "Insufficient logging/monitoring",
)
NOT_YET = "not in this version: "


def functions_of(path: Path) -> set[str]:
    """Return the names of the functions of the file *path*."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, kinds)}


def missing(text: str, root: Path) -> list[str]:
    """Return the tests that *text* names and that do not exist."""
    return [
        f"{path}::{name}"
        for path, name in NODE.findall(text)
        if not name.startswith("test_")
        or not (root / path).is_file()
        or name not in functions_of(root / path)
    ]


@pytest.fixture
def page(texts: dict[str, str]) -> str:
    return texts["SECURITY.md"]


def sections(page: str, marks: str) -> dict[str, str]:
    """Return the sections under the headings of one level, by heading."""
    pieces = re.split(rf"^{marks} (.+)$", page, flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def test_every_test_that_the_page_names_exists(page, root):
    assert len(set(NODE.findall(page))) > 50
    assert missing(page, root) == []


def test_every_name_of_a_test_is_one_that_is_looked_up(page):
    named = [found for found in ANY_PATH.findall(page) if "::" in found]

    assert [found for found in named if not NODE.fullmatch(f"`{found}`")] == []


@pytest.mark.parametrize(
    "text",
    [
        "`tests/unit/house/test_links.py::test_no_such_test`",
        "`tests/unit/house/no_such_file.py::test_a`",
        "`tests/unit/house/test_links.py::prose`",
    ],
)
def test_a_test_that_does_not_exist_is_seen(text, root):
    assert len(missing(text, root)) == 1


def test_the_page_says_how_to_report_what_is_supported_and_what_is_protected(page):
    assert list(sections(page, "##"))[:4] == [
        "How to report",
        "Supported versions",
        "What is protected",
        "Who may attack, what stops them, what is left",
    ]


def test_of_every_attacker_it_says_what_holds_and_what_is_left(page):
    told = sections(sections(page, "##")["Who may attack, what stops them, what is left"], "###")

    assert len(told) == len(ATTACKERS)
    for attacker, heading in zip(ATTACKERS, told, strict=True):
        assert attacker in heading
        assert NODE.search(told[heading]), heading
        assert re.search("^Left[:,]", told[heading], re.MULTILINE), heading


def test_every_row_of_the_old_checklist_names_its_tests_or_is_not_there_yet(page):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in sections(page, "##")["The checklist of the original"].splitlines()
        if line.startswith("| ")
    ][1:]
    rows = [row for row in rows if set(row[0]) != {"-"}]

    assert tuple(row[0] for row in rows) == CHECKLIST
    assert [row[0] for row in rows if not NODE.search(row[2]) and not row[1].startswith(NOT_YET)] == []
