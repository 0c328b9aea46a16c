"""From what a file, a variable or a flag holds to the value of a setting: strict, and clear about what is
wrong.

A file and a caller give typed values, which must have the setting's type: ``true`` is no number and ``"5"``
neither. Variables and flags can only give text (`SourceText`), which is read as what it plainly is.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Final, NewType, get_origin

import cattrs

from pggit_reactor.config.described import SettingField
from pggit_reactor.config.settings import LogFormat, LogLevel
from pggit_reactor.core.egress import TlsVersion
from pggit_reactor.core.secret import Secret

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,18}")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]{1,18}(?:\.[0-9]{0,18})?|\.[0-9]{1,18})(?:[eE][+-]?[0-9]{1,3})?")
_QUOTED_CHARACTERS_MAX: Final = 60
_SWITCHES: Final = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
_LEVEL_ALIASES: Final = {"warn": "warning", "fatal": "critical"}
_Entries = NewType("_Entries", str)


class SourceText(str):
    """Text from a variable or a flag: may stand for a number."""

    __slots__ = ()


class StructureError(ValueError):
    """A value is not what its setting takes; the text says what would be right and holds no secret."""


def structure(value: object, field: SettingField) -> object:
    """Return *value* as the setting of *field* holds it; StructureError with what would be right."""
    try:
        structured: object = _CONVERTER.structure(value, _Entries if field.setting.entries else field.type)
    except StructureError as exc:
        bounds = field.setting.bounds
        raise StructureError(f"{exc}; right is {bounds}" if bounds else str(exc)) from None
    complaint = field.setting.complaint(structured)
    if complaint is not None:
        raise StructureError(complaint)
    return structured


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return ``; did you mean ...?`` with the closest of *known*, or an empty text."""
    by_fold = {name.casefold(): name for name in known}
    folded = wrong.casefold()
    # A name that lacks its section is the commonest slip, and looks far away to difflib.
    endings = [name for name in by_fold if name.endswith(("." + folded, "_" + folded))]
    close = endings or difflib.get_close_matches(folded, by_fold, n=1, cutoff=0.6)
    return f"; did you mean {by_fold[close[0]]}?" if close else ""


def quoted(value: object) -> str:
    """Return a value that is no secret as people may see it, cut where it is long."""
    text = repr(str(value) if isinstance(value, str) else value)
    return text if len(text) <= _QUOTED_CHARACTERS_MAX else text[:_QUOTED_CHARACTERS_MAX] + "..."


def _integer(value: object, _type: object) -> int:
    if type(value) is int:
        return value
    if isinstance(value, SourceText) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    raise StructureError(f"{quoted(value)} is not a whole number")


def _switch(value: object, _type: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, SourceText) else None
    if word in _SWITCHES:
        return _SWITCHES[word]
    raise StructureError(f"{quoted(value)} is neither true nor false")


def _decimal(value: object, _type: object) -> float:
    if type(value) in {int, float}:
        try:
            return float(value)  # type: ignore[arg-type]  # mypy does not narrow by a set of types
        except OverflowError:
            raise StructureError(f"{quoted(value)} is not a number of any use") from None
    if isinstance(value, SourceText) and _DECIMAL.fullmatch(value.strip()):
        return float(value)
    raise StructureError(f"{quoted(value)} is not a plain number")


def _text(value: object, _type: object) -> str:
    if isinstance(value, str):
        return str(value)
    raise StructureError(f"{quoted(value)} is not text; right is the same in quotes")


def _entries(value: object, _type: object) -> str:
    if isinstance(value, str):
        return str(value)
    if not isinstance(value, list | tuple):
        raise StructureError(f"{quoted(value)} is not a list; right is an array, or text with commas")
    for entry in value:
        if type(entry) is not int and not (isinstance(entry, str) and entry.strip() and "," not in entry):
            raise StructureError(
                f"{quoted(entry)} is not an entry; right is a text or a whole number for each"
            )
    return ",".join(str(entry) for entry in value)


def _path(value: object, _type: object) -> Path:
    if isinstance(value, Path):
        return value
    if isinstance(value, str) and value.strip() and "\0" not in value:
        return Path(value)
    raise StructureError(f"{quoted(value)} is not a path")


def _secret(value: object, _type: object) -> Secret[str]:
    plain = value.reveal() if isinstance(value, Secret) else value
    if isinstance(plain, str) and plain.strip():
        return Secret(str(plain))
    raise StructureError("is empty or no text (it is a secret and not shown)")


def _level(value: object, _type: object) -> LogLevel:
    alias = _LEVEL_ALIASES.get(value.strip().lower()) if isinstance(value, str) else None
    return LogLevel(_word(value if alias is None else alias, LogLevel))


def _format(value: object, _type: object) -> LogFormat:
    return LogFormat(_word(value, LogFormat))


def _tls_version(value: object, _type: object) -> TlsVersion:
    return TlsVersion(_word(value, TlsVersion))


def _word(value: object, words: type[StrEnum]) -> str:
    """Return the one of *words* that *value* is, in any case of letters."""
    word = value.strip().lower() if isinstance(value, str) else None
    if word in set(words):
        return word
    guess = did_you_mean(word, words) if word is not None else ""
    raise StructureError(f"{quoted(value)} is not one of {', '.join(words)}{guess}")


def _is_secret(kind: object) -> bool:
    return kind is Secret or get_origin(kind) is Secret


def _make_converter() -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=False, forbid_extra_keys=True)
    converter.register_structure_hook(bool, _switch)
    converter.register_structure_hook(int, _integer)
    converter.register_structure_hook(float, _decimal)
    converter.register_structure_hook(str, _text)
    converter.register_structure_hook(Path, _path)
    converter.register_structure_hook(_Entries, _entries)
    converter.register_structure_hook(LogLevel, _level)
    converter.register_structure_hook(LogFormat, _format)
    converter.register_structure_hook(TlsVersion, _tls_version)
    converter.register_structure_hook_func(_is_secret, _secret)
    return converter


_CONVERTER: Final = _make_converter()
