"""Every link inside the repository leads somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
HEADING = re.compile(r"^#+\s+(.*?)\s*#*$", re.MULTILINE)


def prose(markdown: str) -> str:
    """Return *markdown* without fenced blocks, in which nothing is a link or a heading."""
    return FENCE.sub("", markdown)


def links(markdown: str) -> list[str]:
    return [first or second for first, second in LINK.findall(CODE.sub("", prose(markdown)))]


def anchors(markdown: str) -> set[str]:
    """Return the anchors that a renderer gives to the headings."""
    words = (re.sub(r"[^\w\s-]", "", heading.lower()) for heading in HEADING.findall(prose(markdown)))
    return {heading.replace(" ", "-") for heading in words}


def broken_links(path: Path) -> list[str]:
    """Return the links of the Markdown file *path* that lead nowhere."""
    return [target for target in links(path.read_text()) if not resolves(path, target)]


def resolves(path: Path, target: str) -> bool:
    if re.match(r"[a-z][a-z0-9+.-]*:", target):
        return True  # another site; nothing here can judge it without asking
    name, _, anchor = target.partition("#")
    place = path.parent / name if name else path
    if not place.exists():
        return False
    return not anchor or anchor in anchors(place.read_text())


def test_every_relative_link_resolves(files: tuple[Path, ...], root: Path) -> None:
    pages = [path for path in files if path.suffix == ".md"]
    broken = {path.relative_to(root).as_posix(): broken_links(path) for path in pages}

    assert len(pages) > 5
    assert {page: targets for page, targets in broken.items() if targets} == {}


@pytest.mark.parametrize(
    "text",
    ["[a](nowhere.md)", "[a](page.md#no-such-heading)", "[a](#none)", "[a]: nowhere.md", "![a](no.png)"],
)
def test_a_link_that_leads_nowhere_is_seen(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A heading\n\n{text}\n")

    assert len(broken_links(page)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "[a](page.md)",
        "[a](#a-heading-with-code)",
        "`[a](no.md)`",
        "```\n[a](no.md)\n```",
        "[a](https://a.example)",
    ],
)
def test_a_link_that_resolves_is_accepted(tmp_path: Path, text: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# A heading, with `code`\n\n{text}\n")

    assert broken_links(page) == []
