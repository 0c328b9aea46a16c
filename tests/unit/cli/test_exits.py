from __future__ import annotations

import pytest

from pggit_reactor import errors
from pggit_reactor.cli.exits import Exit, exit_of, report

FOUR_KINDS = {
    errors.ConfigurationError: 2,
    errors.KeyringError: 2,
    errors.BadHeadersError: 2,
    errors.UrlRefusedError: 3,
    errors.SchemaTooNewError: 4,
}


def every_error(kind: type[errors.ReactorError]) -> list[type[errors.ReactorError]]:
    return [kind, *(found for inner in kind.__subclasses__() for found in every_error(inner))]


@pytest.mark.parametrize("kind", every_error(errors.ReactorError))
def test_every_error_has_its_status(kind) -> None:
    assert exit_of(kind("x")) == FOUR_KINDS.get(kind, 1)


def test_an_error_is_one_line(capsys) -> None:
    status = report(errors.ConfigurationError("2 settings are wrong:\n  a\n  b"), with_traceback=False)

    assert status is Exit.USAGE
    assert capsys.readouterr().err == "error: 2 settings are wrong: a b\n"


def test_a_bug_shows_its_kind_and_not_its_text(capsys) -> None:
    assert report(ValueError("s3cret"), with_traceback=False) is Exit.FAILED
    err = capsys.readouterr().err

    assert "ValueError" in err
    assert "s3cret" not in err


def test_of_a_nurserys_group_the_error_that_says_most_is_told(capsys) -> None:
    group = ExceptionGroup(
        "nursery",
        [
            ExceptionGroup(
                "inner", [errors.DatabaseUnavailableError("lost"), errors.KeyringError("wrong key")]
            )
        ],
    )

    assert report(group, with_traceback=False) is Exit.USAGE
    assert capsys.readouterr().err == "error: wrong key\n"


def test_a_group_of_bugs_alone_is_a_bug(capsys) -> None:
    assert report(ExceptionGroup("nursery", [KeyError("s3cret")]), with_traceback=False) is Exit.FAILED
    assert "KeyError" in capsys.readouterr().err


def test_a_traceback_comes_before_the_line(capsys) -> None:
    report(errors.NotFoundError("gone"), with_traceback=True)

    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == "error: gone"
    assert len(lines) > 1
