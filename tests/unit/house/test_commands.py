"""The commands that the pages and CI name are commands that exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from types import ModuleType

import click
import pytest

from pggit_reactor.cli.main import cli

FIRST_SCREEN_LINES = 24
WORD = re.compile(r"\./dev (\w[\w-]*)")
# What is typed for the product, up to a comment, a pipe or the end of the command.
PRODUCT = re.compile(r"(?:(?<![\w./-])pggit-reactor|\./dev run|\./dev(?= demo| up)) +([^#|;&>)\n]+)")
BLOCK_OR_CODE = re.compile(r"^```(?:sh|bash|console|shell)\n(.*?)^```|`([^`\n]+)`", re.MULTILINE | re.DOTALL)


def pages(texts: dict[str, str]) -> dict[str, str]:
    return {path: text for path, text in texts.items() if path.endswith(".md")}


def commands(text: str) -> str:
    """Return what *text* shows as something to type."""
    return "\n".join(block or code for block, code in BLOCK_OR_CODE.findall(text))


def test_every_word_of_dev_that_is_named_exists(texts: dict[str, str], dev: ModuleType) -> None:
    named = {(path, word) for path, text in pages(texts).items() for word in WORD.findall(commands(text))}
    named |= {(".ci/run", word) for word in WORD.findall(texts[".ci/run"])}

    assert {(path, word) for path, word in named if word not in dev.WORDS} == set()


def options(command: click.Command) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def unknown_part(typed: str) -> str | None:
    """Return the first word or option of *typed* that the product's command line does not know."""
    command: click.Command = cli
    known = {"--help", *options(cli)}
    for word in typed.split():
        option = word.partition("=")[0]
        if option.startswith("--") and option not in known:
            return option
        if isinstance(command, click.Group) and re.fullmatch(r"[a-z][a-z0-9-]*", word):
            below = command.get_command(click.Context(command), word)
            if below is None:
                return word
            command = below
            known |= options(command)
    return None


def test_every_command_of_the_product_that_a_page_shows_exists(texts: dict[str, str]) -> None:
    typed = {path: PRODUCT.findall(commands(text)) for path, text in pages(texts).items()}
    shown = [(path, command) for path, found in typed.items() for command in found]

    assert shown
    assert [(path, typed, part) for path, typed in shown if (part := unknown_part(typed))] == []


@pytest.mark.parametrize(
    ("typed", "part"),
    [("no-such-command", "no-such-command"), ("webhook destroy 7", "destroy"), ("doctor --wish", "--wish")],
)
def test_a_command_that_does_not_exist_is_seen(typed: str, part: str) -> None:
    assert unknown_part(typed) == part


def test_the_contributors_page_names_every_word_of_dev(texts: dict[str, str], dev: ModuleType) -> None:
    assert set(dev.WORDS) - set(WORD.findall(texts["CONTRIBUTING.md"])) == set()
    assert [word for word in dev.WORDS if not re.search(rf"^  {word}\b", dev.USAGE, re.MULTILINE)] == []


def test_the_first_screen_of_the_readme_names_the_two_commands(texts: dict[str, str]) -> None:
    screen = "\n".join(texts["README.md"].splitlines()[:FIRST_SCREEN_LINES])

    assert WORD.findall(commands(screen))[:2] == ["demo", "test"]


def test_ci_runs_the_checks_and_then_the_tests_as_the_readme_names_them(texts: dict[str, str]) -> None:
    readme = commands(texts["README.md"])
    ran = re.findall(r"^ *(?:\w+=\S+ )?(\./dev [^\n]*)$", texts[".ci/run"], re.MULTILINE)

    assert re.search(r"^\./dev test +#", readme, re.MULTILINE)
    assert ran[:2] == ["./dev check", "./dev test"]
    assert all(command.startswith("./dev test ") for command in ran[2:])


def test_the_scripts_are_executable_and_ci_parses(root: Path) -> None:
    assert (root / "dev").stat().st_mode & 0o111
    assert (root / ".ci" / "run").stat().st_mode & 0o111
    assert subprocess.run(["bash", "-n", root / ".ci" / "run"], check=False).returncode == 0
