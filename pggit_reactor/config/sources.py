"""Where values come from: each source yields candidates, a value for a setting with the name of its place."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

import attrs

from pggit_reactor.config.described import FIELDS, SettingField
from pggit_reactor.config.legacy import HONOURED
from pggit_reactor.config.secret_file import mode_complaint, read_secret_file
from pggit_reactor.config.setting import FILE_SUFFIX, VARIABLE_PREFIX, dsn_has_password
from pggit_reactor.config.structure import SourceText, did_you_mean
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError

TOML_NAME: Final = "reactor.toml"
TOML_BYTES_MAX: Final = 1_048_576
_FILE_KEY_SUFFIX: Final = "_file"
_DATABASE: Final = "database"


class Rank(IntEnum):
    """Which source wins: the greatest."""

    LEGACY = 1
    TOML = 2
    TOML_FILE = 3
    """A file that the settings file names."""
    ALSO = 4
    """Another name of a variable of ours, such as DATABASE_URL."""
    VARIABLE = 5
    VARIABLE_FILE = 6
    """A file that a variable names."""
    OVERRIDE = 7


@attrs.frozen(kw_only=True)
class Candidate:
    """A value for a setting from one place; *source* names the place for people."""

    key: str
    rank: Rank
    source: str
    value: object = attrs.field(repr=False)


@attrs.define
class Findings:
    """What the sources hold: candidates, and what is wrong or worth a word."""

    candidates: list[Candidate] = attrs.Factory(list)
    complaints: list[str] = attrs.Factory(list)
    warnings: list[str] = attrs.Factory(list)

    def add(self, key: str, rank: Rank, source: str, value: object) -> None:
        """Note a value for the setting *key*."""
        self.candidates.append(Candidate(key=key, rank=rank, source=source, value=value))

    def add_file(self, key: str, rank: Rank, source: str, path: Path) -> None:
        """Note the secret that the file *path* holds, or why it cannot be had."""
        try:
            self.add(key, rank, f"{source} ({path})", read_secret_file(path))
        except ConfigurationError as exc:
            self.complaints.append(f"{source}: {exc}")


# ---- variables ------------------------------------------------------------------------------------------


def read_environment(environ: Mapping[str, str], findings: Findings) -> None:
    """Find what variables hold: ours, their ``_FILE`` forms, other names and honoured legacy ones."""
    for key, field in FIELDS.items():
        facts = field.setting
        names = [(facts.variable, Rank.VARIABLE), *((name, Rank.ALSO) for name in facts.also)]
        for name, rank in names:
            if name in environ and (environ[name].strip() or field.empty_is_a_value):
                findings.add(key, rank, name, _of_text(field, environ[name]))
        if facts.file_variable is not None and environ.get(facts.file_variable):
            path = Path(environ[facts.file_variable])
            findings.add_file(key, Rank.VARIABLE_FILE, facts.file_variable, path)
    for name, key in HONOURED.items():
        if environ.get(name, "").strip():
            findings.add(key, Rank.LEGACY, name, SourceText(environ[name]))
    findings.complaints.extend(_unknown_variables(environ))


def _unknown_variables(environ: Mapping[str, str]) -> Iterator[str]:
    known = {field.setting.variable for field in FIELDS.values()}
    known |= {field.setting.file_variable or field.setting.variable for field in FIELDS.values()}
    for name in sorted(environ):
        if not name.upper().startswith(VARIABLE_PREFIX) or name in known:
            continue
        plain = name.removesuffix(FILE_SUFFIX)
        if plain in known:
            yield f"{name}: only secrets are read from files; did you mean {plain}?"
        else:
            yield f"{name}: there is no such setting{_guess_variable(name, known)}"


def _guess_variable(name: str, known: set[str]) -> str:
    # Without the prefix, which all have in common and which would make any two names look alike.
    bare = {other.removeprefix(VARIABLE_PREFIX) for other in known}
    guess = did_you_mean(name[len(VARIABLE_PREFIX) :], bare)
    return guess.replace("did you mean ", f"did you mean {VARIABLE_PREFIX}")


# ---- the file -------------------------------------------------------------------------------------------


def read_toml(path: Path, findings: Findings) -> None:
    """Find what the settings file *path* holds. Relative paths in it are relative to its folder."""
    try:
        document, exposed = _parse_toml(path)
    except ConfigurationError as exc:
        findings.complaints.append(f"{path}: {exc}")
    else:
        _walk(document, path, findings, exposed=exposed)


def _parse_toml(path: Path) -> tuple[Mapping[str, Any], str | None]:
    """Return what the file holds, and a complaint about its mode for the case that it holds a secret."""
    try:
        with path.open("rb") as file:
            octets, status = file.read(TOML_BYTES_MAX + 1), os.fstat(file.fileno())
    except OSError as exc:
        raise ConfigurationError(f"cannot be read: {exc.strerror}") from exc
    if len(octets) > TOML_BYTES_MAX:
        raise ConfigurationError(f"is larger than {TOML_BYTES_MAX} bytes: it is no settings file of ours")
    try:
        document = tomllib.loads(octets.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ConfigurationError("is not text; right is UTF-8") from None
    except tomllib.TOMLDecodeError as exc:
        # Without its cause, which may hold the whole text of the file.
        raise ConfigurationError(f"is not TOML: {exc}") from None
    return document, mode_complaint(status.st_mode, status.st_uid)


def _walk(document: Mapping[str, Any], path: Path, findings: Findings, *, exposed: str | None) -> None:
    sections = {field.setting.section for field in FIELDS.values()} - {""}
    for name, value in document.items():
        if name in sections and isinstance(value, dict):
            for inner, inner_value in value.items():
                _take(f"{name}.{inner}", inner_value, path, findings, exposed=exposed)
        elif name in sections:
            findings.complaints.append(
                f"{path}: {name} is a section; right is [{name}] and its settings below it"
            )
        elif isinstance(value, dict):
            findings.complaints.append(f"{path}: there is no section [{name}]{did_you_mean(name, sections)}")
        else:
            _take(name, value, path, findings, exposed=exposed)


def _take(key: str, value: object, path: Path, findings: Findings, *, exposed: str | None) -> None:
    source = f"{path}: {key}"
    named = FIELDS.get(key.removesuffix(_FILE_KEY_SUFFIX))
    if key in FIELDS:
        _take_plain(FIELDS[key], value, path, findings, exposed=exposed)
    elif named is None or not named.setting.secret:
        findings.complaints.append(f"{source}: there is no such setting{did_you_mean(key, _toml_keys())}")
    elif isinstance(value, str) and value.strip():
        findings.add_file(named.setting.key, Rank.TOML_FILE, source, path.parent / value)
    else:
        findings.complaints.append(f"{source}: is not the path of a file, in quotes")


def _take_plain(
    field: SettingField, value: object, path: Path, findings: Findings, *, exposed: str | None
) -> None:
    key, source = field.setting.key, f"{path}: {field.setting.key}"
    if field.setting.secret and isinstance(value, str):
        value = Secret(value)
        if exposed is not None and field.section != _DATABASE:
            findings.complaints.append(f"{source}: is a secret in a file where {exposed}")
            return
        # A connection text is often no secret, and the file is often shared: no refusal.
        if exposed is not None and dsn_has_password(value.reveal()):
            findings.warnings.append(f"{source}: holds a password in a file where {exposed}")
    elif field.type == Path | None and isinstance(value, str) and value.strip():
        value = path.parent / value
    findings.add(key, Rank.TOML, source, value)


def _toml_keys() -> list[str]:
    files = [key + _FILE_KEY_SUFFIX for key, field in FIELDS.items() if field.setting.secret]
    return [*FIELDS, *files]


# ---- flags ----------------------------------------------------------------------------------------------


def read_overrides(overrides: Mapping[str, object], findings: Findings) -> None:
    """Find what the caller set, by key; None is a flag that was not given."""
    for key, value in overrides.items():
        source = f"flag for {key}"
        if key not in FIELDS:
            findings.complaints.append(f"{source}: there is no such setting{did_you_mean(key, FIELDS)}")
        elif value is not None:
            findings.add(
                key, Rank.OVERRIDE, source, _of_text(FIELDS[key], value) if isinstance(value, str) else value
            )


def _of_text(field: SettingField, text: str) -> SourceText | Secret[str]:
    return Secret(text) if field.setting.secret else SourceText(text)
