"""All settings as one table: what `load` fills, what the reference page and ``--help`` print."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from types import MappingProxyType
from typing import Any, Final

import attrs

from pggit_reactor.config.setting import Setting, setting_of
from pggit_reactor.config.settings import Settings


@attrs.frozen(kw_only=True)
class SettingField:
    """A setting and the field that holds it."""

    setting: Setting
    section: str
    """The attribute of `Settings` that holds the section's value; empty for a setting without a section."""
    attribute: str
    type: Any
    default: object
    """`attrs.NOTHING` where the default follows another setting."""

    @property
    def empty_is_a_value(self) -> bool:
        """An empty variable sets it to empty; for all others an empty variable counts as not set."""
        return self.default == ""


@attrs.frozen(kw_only=True)
class SettingDescription:
    """A setting in words. *default* is never a secret; *values* are bounds or the words to choose from."""

    key: str
    variable: str
    file_variable: str | None
    also: tuple[str, ...]
    default: str
    unit: str
    values: str
    meaning: str
    secret: bool


def describe_settings() -> tuple[SettingDescription, ...]:
    """Return every setting in words, in the order of the sections."""
    return tuple(_describe(field) for field in FIELDS.values())


def _describe(field: SettingField) -> SettingDescription:
    facts = field.setting
    words = ", ".join(field.type) if isinstance(field.type, type) and issubclass(field.type, Enum) else ""
    words = "true, false" if field.type is bool else words
    return SettingDescription(
        key=facts.key,
        variable=facts.variable,
        file_variable=facts.file_variable,
        also=facts.also,
        default=facts.default_text or _default_text(field.default),
        unit=facts.unit,
        values=facts.bounds or words,
        meaning=facts.meaning,
        secret=facts.secret,
    )


def _default_text(default: object) -> str:
    if default is None or default == "":
        return "none"
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:.15g}" if isinstance(default, float) else str(default)


def _fields() -> dict[str, SettingField]:
    found = {}
    for section in attrs.fields(attrs.resolve_types(Settings)):
        facts = setting_of(section)
        if facts is not None:
            found[facts.key] = _field(facts, "", section)
            continue
        assert section.type is not None
        for attribute in attrs.fields(attrs.resolve_types(section.type)):
            facts = setting_of(attribute)
            assert facts is not None, f"{section.name}.{attribute.name} is not described"
            found[facts.key] = _field(facts, section.name, attribute)
    return found


def _field(facts: Setting, section: str, attribute: attrs.Attribute[Any]) -> SettingField:
    follows = isinstance(attribute.default, attrs.Factory)  # type: ignore[arg-type]  # a class, typed as a function
    return SettingField(
        setting=facts,
        section=section,
        attribute=attribute.name,
        type=attribute.type,
        default=attrs.NOTHING if follows else attribute.default,
    )


FIELDS: Final[Mapping[str, SettingField]] = MappingProxyType(_fields())
"""Every setting by its key, in the order of the sections."""
