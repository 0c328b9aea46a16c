"""Finds secrets in what a program gave away: in the clear, and in the forms that programs write octets in.

A test puts values that occur nowhere else into every place where a secret may stand, runs, gathers all that came
out, and asks `Marks.found_in`.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from urllib.parse import quote

import attrs

MARK_OCTETS_MIN = 8
"""A shorter one would be found by chance."""

_SIGNATURES = {
    "a signature": re.compile(r"v1,[A-Za-z0-9+/]{43}=|sha256=[0-9a-f]{64}"),
}


def _forms(value: bytes) -> frozenset[str]:
    """Return *value* as text, in hexadecimal, percent-encoded, and as it looks inside longer base64."""
    forms = {value.hex(), quote(value, safe="")}
    if value.isascii():
        forms.add(value.decode("ascii"))
    for offset in range(3):
        # The first and last characters also hold bits of what stands around it.
        text = base64.b64encode(bytes(offset) + value).decode("ascii")
        whole = text[-(-offset * 8 // 6) : (offset + len(value)) * 8 // 6]
        forms |= {whole, whole.replace("+", "-").replace("/", "_")}
    return frozenset(forms)


@attrs.define(eq=False)
class Marks:
    """Values that may not be seen, by what they are."""

    _forms_by_name: dict[str, frozenset[str]] = attrs.field(factory=dict, init=False, repr=False)

    def add(self, name: str, value: str | bytes) -> None:
        """Look for *value* from now on."""
        octets = value.encode() if isinstance(value, str) else value
        assert len(octets) >= MARK_OCTETS_MIN
        self._forms_by_name[name] = _forms(octets)

    def found_in(self, text: str) -> list[str]:
        """Return the names of the marks in *text*, and whether there are signatures."""
        folded = text.lower()
        found = [
            name
            for name, forms in self._forms_by_name.items()
            # Hexadecimal, and whatever folds case, is found too.
            if any(form.lower() in folded for form in forms)
        ]
        return found + [name for name, pattern in _SIGNATURES.items() if pattern.search(text)]

    def found_in_places(self, places: Mapping[str, str]) -> list[str]:
        """Return ``PLACE holds NAME`` for each mark in each of *places*."""
        return [f"{place} holds {name}" for place, text in places.items() for name in self.found_in(text)]
