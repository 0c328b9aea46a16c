"""What one setting is: its names, its bounds and its meaning, kept beside the field that holds it.

The facts live in the metadata of the attrs field, so that the value's own constructor, the loader, the
reference page and ``--help`` read the same table and cannot drift apart.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final

import attrs

from pggit_reactor.errors import ConfigurationError

VARIABLE_PREFIX: Final = "PGGIT_REACTOR_"
FILE_SUFFIX: Final = "_FILE"

_METADATA_KEY: Final = "pggit_reactor.setting"
_UNIT_WORDS: Final = {"s": " s", "bytes": " bytes"}

Check = Callable[[Any], str | None]
"""Returns what is wrong with a value and what would be right, or None. Never quotes a secret."""


@attrs.frozen(kw_only=True)
class Setting:
    """The facts of one setting. `complaint` is the only judge of a value of the right type."""

    key: str
    """As in the file: ``section.name``, or a bare name."""
    meaning: str
    unit: str = ""
    least: float | None = None
    most: float | None = None
    check: Check | None = None
    variable: str
    """The environment variable, whole."""
    also: tuple[str, ...] = ()
    """Other variables that are as good, below ours."""
    secret: bool = False
    """Held as a Secret; may come from a file named by the variable with ``_FILE``."""
    entries: bool = False
    """A text of entries separated by commas; in the file an array will do as well."""
    default_text: str | None = None
    """The default in words, where the value itself does not say it."""

    @property
    def section(self) -> str:
        """The table of the file it stands in, or an empty text."""
        return self.key.rpartition(".")[0]

    @property
    def name(self) -> str:
        """Its key inside the table."""
        return self.key.rpartition(".")[2]

    @property
    def file_variable(self) -> str | None:
        """The variable that names a file to read it from; secrets only."""
        return self.variable + FILE_SUFFIX if self.secret else None

    @property
    def bounds(self) -> str:
        """The bounds in words, such as ``0.1 to 20 s``; empty where there are none."""
        unit = _UNIT_WORDS.get(self.unit, "")
        if self.least is not None and self.most is not None:
            return f"{self.least:.15g} to {self.most:.15g}{unit}"
        return ""

    def complaint(self, value: object) -> str | None:
        """Say what is wrong with *value*, which has the right type, and what would be right; or None."""
        if isinstance(value, int | float) and not isinstance(value, bool):
            wrong = self._out_of_bounds(value)
            if wrong is not None:
                return wrong
        return self.check(value) if self.check is not None and value is not None else None

    def _out_of_bounds(self, value: float) -> str | None:
        if not math.isfinite(value):
            return f"{value} is not a finite number"
        if self.least is not None and value < self.least:
            return f"{value:.15g} is too little; right is {self.bounds}"
        if self.most is not None and value > self.most:
            return f"{value:.15g} is too much; right is {self.bounds}"
        return None


def about(
    key: str,
    meaning: str,
    *,
    unit: str = "",
    least: float | None = None,
    most: float | None = None,
    check: Check | None = None,
    variable: str | None = None,
    also: tuple[str, ...] = (),
    secret: bool = False,
    entries: bool = False,
    default_text: str | None = None,
) -> Mapping[str, Setting]:
    """Return the metadata of a field that is a setting; *variable* is without the prefix."""
    facts = Setting(
        key=key,
        meaning=meaning,
        unit=unit,
        least=least,
        most=most,
        check=check,
        variable=VARIABLE_PREFIX + (variable or key.upper().replace(".", "_")),
        also=also,
        secret=secret,
        entries=entries,
        default_text=default_text,
    )
    return {_METADATA_KEY: facts}


def setting_of(attribute: attrs.Attribute[Any]) -> Setting | None:
    """Return the facts of a field that has them; None for any other field."""
    facts = attribute.metadata.get(_METADATA_KEY)
    assert facts is None or isinstance(facts, Setting)
    return facts


def judge(_instance: object, attribute: attrs.Attribute[Any], value: object) -> None:
    """Refuse a value out of its bounds: the validator of every field that is a setting."""
    facts = setting_of(attribute)
    assert facts is not None
    complaint = facts.complaint(value)
    if complaint is not None:
        raise ConfigurationError(f"{facts.key}: {complaint}")


# ---- checks of texts ------------------------------------------------------------------------------------

_URL_SCHEME: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# A quote only quotes at the start of a value, as in libpq.
_DSN_PAIR: Final = re.compile(
    r"\s*[A-Za-z_][A-Za-z0-9_]*\s*=\s*(?:'(?:[^'\\]|\\.)*'|(?:(?:[^\s'\\]|\\.)(?:[^\s\\]|\\.)*)?)(?=\s|$)",
    re.DOTALL,
)
_URL_PASSWORD: Final = re.compile(r"[a-z]+://[^/@]*:[^/]*@")
UNIX_PREFIX: Final = "unix:"
_HOST: Final = re.compile(r"[0-9A-Za-z_.:%-]{1,255}")
WORKER_ID_CHARACTERS_MAX: Final = 128


def dsn_complaint(text: str) -> str | None:
    """Say what is wrong with the shape of a libpq connection text. The text is a secret: never quoted."""
    right = "right is postgresql://USER@HOST:PORT/NAME or host=HOST dbname=NAME user=USER"
    if "\0" in text:
        return f"holds a NUL character; {right}"
    if text.startswith(("postgresql://", "postgres://")):
        return None
    if _URL_SCHEME.match(text) or text.startswith("jdbc:"):
        return f"is an URL of another kind (its scheme is that of another library?); {right}"
    position = 0
    while position < len(text.rstrip()):
        pair = _DSN_PAIR.match(text, position)
        if pair is None:
            return f"is neither an URL nor a list of KEY=VALUE; {right}"
        position = pair.end()
    return None if position else f"is empty; {right}"


def command_complaint(text: str) -> str | None:
    """Say what is wrong with a program and its arguments, quoted as for a shell, which never sees them."""
    right = "right is the absolute path of a program and its arguments, quoted as for a shell"
    try:
        words = shlex.split(text)
    except ValueError as error:
        return f"is no command ({error}); {right}"
    if text and (not words or not words[0].startswith("/") or "\0" in text):
        return f"does not begin with an absolute path; {right}"
    return None


def dsn_has_password(text: str) -> bool:
    """Tell whether a connection text seems to hold a password; rather yes than no."""
    return _URL_PASSWORD.match(text) is not None or "password" in text.lower()


def host_complaint(text: str) -> str | None:
    """Say what is wrong with an address to listen on."""
    if _HOST.fullmatch(text):
        return None
    return f"{text!r} is not an address to listen on; right is such as 127.0.0.1, 0.0.0.0 or ::1"


def port_host_complaint(text: str) -> str | None:
    """As `host_complaint`; ``unix:`` and an absolute path is an address too: supervised workers have one."""
    if text.startswith(UNIX_PREFIX) and text.removeprefix(UNIX_PREFIX).startswith("/"):
        return None
    return host_complaint(text)


def worker_id_complaint(text: str) -> str | None:
    """Say what is wrong with a worker's id: it labels metrics, logs and leases."""
    if 1 <= len(text) <= WORKER_ID_CHARACTERS_MAX and text.isprintable() and not text.isspace():
        return None
    return f"{text!r} is not an id; right is 1 to {WORKER_ID_CHARACTERS_MAX} printable characters"
