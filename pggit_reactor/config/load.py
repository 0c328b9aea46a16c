"""Settings from all their sources: defaults, legacy variables, the file, variables, flags; the later wins.

`load_settings` reads the files that are named to it, the host's name and the process id, and nothing else of
the world: the environment is an argument.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import attrs

from pggit_reactor.config.described import FIELDS
from pggit_reactor.config.legacy import legacy_warnings
from pggit_reactor.config.settings import (
    Settings,
    body_budget_complaint,
    key_source_complaint,
    lease_complaint,
)
from pggit_reactor.config.sources import (
    TOML_NAME,
    Candidate,
    Findings,
    Rank,
    read_environment,
    read_overrides,
    read_toml,
)
from pggit_reactor.config.structure import StructureError, structure
from pggit_reactor.errors import ConfigurationError

__all__ = ["TOML_NAME", "Loaded", "default_worker_id", "load_settings"]

_NO_OVERRIDES: Final[Mapping[str, object]] = MappingProxyType({})
_SPANNING: Final = (
    ("worker.lease_seconds", "delivery.timeout_seconds", lease_complaint),
    ("worker.body_bytes_max", "delivery.max_body_bytes", body_budget_complaint),
    ("keys.master_key", "keys.master_key_command", key_source_complaint),
)
"""Rules about two settings: the keys, and what says that they do not go together."""


@attrs.frozen(kw_only=True)
class Loaded:
    """Valid settings, what their reader should know, and where each value that is no default came from."""

    settings: Settings
    warnings: tuple[str, ...]
    sources: Mapping[str, str]
    """Place by key; a setting that is not here has its default."""


def load_settings(
    *,
    environ: Mapping[str, str],
    toml_path: Path | None = None,
    overrides: Mapping[str, object] = _NO_OVERRIDES,
) -> Loaded:
    """Return the settings of all sources.

    *overrides* are flags, by key (``{"worker.processes": 4}``); None counts as not given. Without *toml_path*
    no file is read; a path that does not exist is an error. ConfigurationError names everything that is wrong
    at once, a line each, with its place and what would be right; no text holds a secret.
    """
    findings = Findings()
    read_environment(environ, findings)
    if toml_path is not None:
        read_toml(toml_path, findings)
    read_overrides(overrides, findings)
    chosen = {key: _rising(key, findings) for key in FIELDS}
    values = _structure(chosen, findings)
    _judge_pairs(values, chosen, findings)
    if findings.complaints:
        raise ConfigurationError(_text_of(findings.complaints))
    values.setdefault("worker.id", default_worker_id(socket.gethostname(), os.getpid()))
    return Loaded(
        settings=_build(values),
        warnings=(*findings.warnings, *_differences(chosen, values), *legacy_warnings(environ)),
        sources=MappingProxyType({key: found[-1].source for key, found in chosen.items() if found}),
    )


def default_worker_id(host: str, pid: int) -> str:
    """Return the id of a worker that was given none."""
    return f"{host}-{pid}"


def _rising(key: str, findings: Findings) -> list[Candidate]:
    """Return the candidates of a setting, the winner last."""
    return sorted((found for found in findings.candidates if found.key == key), key=lambda found: found.rank)


def _structure(chosen: Mapping[str, list[Candidate]], findings: Findings) -> dict[str, object]:
    values = {}
    for key, candidates in chosen.items():
        if not candidates:
            continue
        winner = candidates[-1]
        try:
            values[key] = structure(winner.value, FIELDS[key])
        except StructureError as exc:
            findings.complaints.append(f"{winner.source}: {exc}{_way_out(winner)}")
    return values


def _way_out(winner: Candidate) -> str:
    # A legacy name may serve another program in the same environment: then ours, which wins, is the way out.
    if winner.rank not in {Rank.LEGACY, Rank.ALSO}:
        return ""
    return f" (or set {FIELDS[winner.key].setting.variable}, which wins)"


def _judge_pairs(
    values: Mapping[str, object], chosen: Mapping[str, list[Candidate]], findings: Findings
) -> None:
    for one, other, judge in _SPANNING:
        refused = [key for key in (one, other) if chosen[key] and key not in values]
        if refused:
            continue
        pair: list[Any] = [values.get(key, FIELDS[key].default) for key in (one, other)]
        complaint = judge(*pair)
        if complaint is not None:
            places = [f"{key} is from {chosen[key][-1].source}" for key in (one, other) if chosen[key]]
            findings.complaints.append(f"{complaint} ({', '.join(places)})")


def _differences(chosen: Mapping[str, list[Candidate]], values: Mapping[str, object]) -> list[str]:
    """Report values of a setting that differ where nobody can have meant both."""
    warnings = []
    for key, candidates in chosen.items():
        for loser in candidates[:-1]:
            winner = candidates[-1]
            if _is_suspicious(winner, loser) and not _same(loser, values[key]):
                warnings.append(f"{loser.source} differs from {winner.source}, which wins ({key})")
    return warnings


def _is_suspicious(winner: Candidate, loser: Candidate) -> bool:
    if winner.rank is Rank.OVERRIDE:
        return False
    foreign = {Rank.LEGACY, Rank.ALSO}
    twice = {(Rank.TOML_FILE, Rank.TOML), (Rank.VARIABLE_FILE, Rank.VARIABLE)}
    return loser.rank in foreign or winner.rank in foreign or (winner.rank, loser.rank) in twice


def _same(loser: Candidate, value: object) -> bool:
    try:
        return structure(loser.value, FIELDS[loser.key]) == value
    except StructureError:
        return False


def _build(values: Mapping[str, object]) -> Settings:
    sections: dict[str, dict[str, Any]] = {field.section: {} for field in FIELDS.values()}
    for key, value in values.items():
        sections[FIELDS[key].section][FIELDS[key].attribute] = value
    plain = sections.pop("")
    default = Settings()
    built = {name: type(getattr(default, name))(**arguments) for name, arguments in sections.items()}
    return Settings(**built, **plain)


def _text_of(complaints: list[str]) -> str:
    if len(complaints) == 1:
        return complaints[0]
    return f"{len(complaints)} settings are wrong:\n" + "\n".join(
        f"  {complaint}" for complaint in complaints
    )
