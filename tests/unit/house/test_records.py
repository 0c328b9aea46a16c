"""Change notes and decision records keep their form."""

from __future__ import annotations

import re
from pathlib import Path

FRAGMENT = re.compile(r"\d+\.(?:added|changed|fixed|removed|security)(?:\.\d+)?\.md")
RECORD = re.compile(r"(\d{4})-[a-z0-9-]+\.md")
SECTIONS = ("Context", "Options", "Choice", "Consequences", "What would change our mind")


def notes(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != "README.md")


def test_each_change_note_is_named_by_issue_and_kind_and_says_something(root: Path) -> None:
    found = notes(root / "docs" / "changes")

    assert [path.name for path in found if not FRAGMENT.fullmatch(path.name)] == []
    assert [path.name for path in found if not path.read_text().strip()] == []


def test_decisions_have_numbers_of_their_own(root: Path) -> None:
    names = [path.name for path in notes(root / "docs" / "decisions")]
    numbers = [RECORD.fullmatch(name)[1] for name in names]

    assert len(numbers) == len(set(numbers))


def test_each_decision_has_all_its_parts_in_order(root: Path) -> None:
    for record in notes(root / "docs" / "decisions"):
        text = record.read_text()
        places = [text.find(f"\n## {section}\n") for section in SECTIONS]

        assert text.startswith(f"# {record.name[:4]}. "), record.name
        assert re.search(r"^Status: (?:accepted|superseded by \[)", text, re.MULTILINE), record.name
        assert -1 not in places, record.name
        assert places == sorted(places), record.name


def test_the_list_of_decisions_is_whole(root: Path) -> None:
    listed = (root / "docs" / "decisions" / "README.md").read_text()

    assert [path.name for path in notes(root / "docs" / "decisions") if f"({path.name})" not in listed] == []
