"""Writes docs/settings.md from the settings themselves, so that the page cannot say anything else.

    .venv/bin/python docs/generate_settings.py

A test compares the page with what this would write (tests/unit/docs/test_settings_page.py).
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pggit_reactor.config.described import SettingDescription, describe_settings
from pggit_reactor.config.legacy import HONOURED

PAGE = Path(__file__).with_name("settings.md")

INTRODUCTION = """\
# Settings

Made by `docs/generate_settings.py` from the settings themselves; change them there.

A setting has a key in the configuration file and a variable in the environment. In rising order: the default, a \
variable of the original worker, the file, the variable, the file that the variable with `_FILE` names (secrets only), \
a flag. Everything that is wrong is said at once, each with its place and what would be right; a name that does not \
exist comes with a guess.

The file is `reactor.toml` in the current folder, or the one of `--config`. A section of the key is a table:

```toml
[worker]
poll_seconds = 2

[egress]
ports = [443, 8443]
```

A file that holds a secret must be readable by its owner alone; a group may read one that root owns.
"""

SECTIONS = {
    "database": "Where the queue is. The address never comes from the command line, where others could read it.",
    "keys": "What seals URLs, headers and secrets; see [keys](operations.md#keys).",
    "secrets": "How signing secrets are rotated; see [rotation](operations.md#rotate-signing-secrets).",
    "worker": "How a worker works. At SIGHUP it takes up new keys and a new log level; the rest at its next start.",
    "delivery": "How a delivery is attempted. A webhook may have values of its own (`webhook set`).",
    "retention": "How long what is over is kept; see [how long](data-protection.md#how-long).",
    "egress": "Where requests may go; see [security](security.md#where-requests-may-go).",
    "metrics": "Where a worker, or a supervisor, serves its probes.",
    "api": "Checked, and used by nothing in this version.",
    "log": "What is printed, and how.",
    "": "Of no section.",
}

LEGACY = """\
## Variables of the original worker

These are honoured, below everything else. A variable of it that has no effect any more is reported at start, with \
what replaces it.

| variable | setting |
| --- | --- |
"""


def page() -> str:
    """Return the whole page."""
    groups = groupby(describe_settings(), key=lambda described: described.key.rpartition(".")[0])
    parts = [INTRODUCTION, *(section(name, list(members)) for name, members in groups)]
    legacy = "".join(f"| `{variable}` | `{key}` |\n" for variable, key in HONOURED.items())
    return "\n".join([*parts, LEGACY + legacy])


def section(name: str, members: list[SettingDescription]) -> str:
    """Return one section with its table."""
    lines = [f"## {name or 'Others'}", "", SECTIONS[name], ""]
    lines += ["| key and variables | default | values | meaning |", "| --- | --- | --- | --- |"]
    lines += [row(member) for member in members]
    return "\n".join(lines) + "\n"


def row(described: SettingDescription) -> str:
    """Return one setting as a row."""
    names = "<br>".join(f"`{name}`" for name in names_of(described))
    default = f"{described.default} {described.unit}".strip()
    return f"| {names} | {default} | {described.values} | {described.meaning} |"


def names_of(described: SettingDescription) -> Iterator[str]:
    """Yield the key, then the variables."""
    yield described.key
    yield described.variable
    if described.file_variable is not None:
        yield described.file_variable
    yield from described.also


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
