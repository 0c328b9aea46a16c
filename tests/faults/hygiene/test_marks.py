"""What looks for secrets finds them: in the clear and in the forms in which octets are written."""

from __future__ import annotations

import base64
import json
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.testing.marks import Marks

FORMS = {
    "text": lambda octets: octets.decode("latin-1"),
    "upper case": lambda octets: octets.decode("latin-1").upper(),
    "hexadecimal": bytes.hex,
    "a bytea of the server": lambda octets: "\\x" + octets.hex(),
    "base64": lambda octets: base64.b64encode(octets).decode(),
    "base64 for URLs": lambda octets: base64.urlsafe_b64encode(octets).decode(),
    "percent": quote,
    "json": lambda octets: json.dumps({"a": octets.decode("latin-1")}),
}


@pytest.mark.parametrize("form", FORMS)
@given(
    mark=st.text(alphabet="abcXYZ012", min_size=8, max_size=40).map(str.encode),
    before=st.binary(max_size=7),
    after=st.binary(max_size=7),
)
def test_a_mark_is_found_in_any_form_and_between_other_octets(form, mark, before, after):
    marks = Marks()
    marks.add("the mark", mark)

    assert marks.found_in(f"a line {FORMS[form](before + mark + after)} and its end") == ["the mark"]


@given(st.text(alphabet="abcXYZ012 ", max_size=200))
def test_what_is_not_there_is_not_found(text):
    marks = Marks()
    marks.add("the mark", "QQQQ-QQQQ-QQQQ")

    assert marks.found_in(text) == []


def test_signatures_are_found_and_places_are_named():
    found = Marks().found_in_places(
        {"here": "v1," + "A" * 43 + "=", "there": "sha256=" + "0" * 64, "nowhere": "v1,"}
    )

    assert found == ["here holds a signature", "there holds a signature"]
