"""Rules that every command keeps."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest

from pggit_reactor.cli.main import COMMANDS, cli, run

HEAVY = ("trio", "psycopg", "httpx", "cryptography", "structlog", "rich", "cattrs", "prometheus_client")


def walk(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    if isinstance(command, click.Group):
        for name, inner in command.commands.items():
            yield from walk(inner, (*words, name))


ALL = [pair for name, lazy in COMMANDS.items() for pair in walk(lazy.load(), (name,))]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_summary_in_the_table_is_the_commands_own_first_sentence(name) -> None:
    sentence = (COMMANDS[name].load().help or "").split("\n\n")[0].removesuffix(".")

    assert " ".join(sentence.split()) == COMMANDS[name].summary


@pytest.mark.parametrize("words", [words for words, _ in ALL], ids=" ".join)
def test_every_command_has_help_with_an_example(words, capsys) -> None:
    assert run([*words, "--help"]) == 0
    out = capsys.readouterr().out

    assert f"Example: pggit-reactor {words[0]}" in out
    assert all(parameter.help for parameter in dict(ALL)[words].params if isinstance(parameter, click.Option))


def test_the_issues_commands_are_all_there() -> None:
    wanted = (
        "demo, up, migrate, worker, key new, key status, webhook add, webhook list, webhook show, webhook set, "
        "webhook test, webhook remove, delivery list, delivery show, url check, doctor, psql"
    )

    assert set(wanted.split(", ")) <= {" ".join(words) for words, _ in ALL}


@pytest.mark.parametrize("arguments", [["--help"], ["--version"]])
def test_help_and_version_load_nothing_heavy(arguments) -> None:
    program = (
        "import sys\nfrom pggit_reactor.cli.main import run\n"
        f"assert run({arguments}) == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["webhok"], "did you mean webhook?"),
        (["webhook", "lst"], "list"),
        (["--unknown"], "--unknown"),
        (["webhook", "add"], "URL"),
        (["--as", "", "webhook", "list"], "printable"),
        (["--as", "a\nb", "webhook", "list"], "printable"),
    ],
)
def test_a_wrong_word_is_exit_2_and_points_to_the_right_one(arguments, words, capsys) -> None:
    assert run(arguments) == 2
    assert words in capsys.readouterr().err


def test_no_word_at_all_is_the_help_and_exit_2(capsys) -> None:
    assert run([]) == 2
    printed = capsys.readouterr()
    assert "webhook" in printed.out + printed.err


def test_the_help_says_where_the_database_url_comes_from(capsys) -> None:
    run(["--help"])

    out = " ".join(capsys.readouterr().out.split())
    assert "never taken from the command line" in out
    assert "PGGIT_REACTOR_DATABASE_URL" in out
    assert not [option for option in cli.params if "database" in str(option.name)]
