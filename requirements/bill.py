"""Print the bill of materials of what an installation holds, as CycloneDX 1.6: `./dev sbom > sbom.cdx.json`.

The packages, versions and hashes are those of the lock (run.txt), read by cyclonedx-py; the licences are those of
licences.toml, which a test compares with what the packages say of themselves. The same lock makes the same octets:
neither time nor chance is in it, and no address to download from.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

ROOT = Path(__file__).parents[1]
LOCK = ROOT / "requirements" / "run.txt"
LICENCES = ROOT / "requirements" / "licences.toml"
PROJECT = ROOT / "pyproject.toml"
NAME = re.compile(r"[A-Za-z0-9._-]+")

Json = dict[str, Any]


def canonical(requirement: str) -> str:
    """Return the name that *requirement* begins with, as locks write it."""
    found = NAME.match(requirement)
    assert found, requirement
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def listed() -> Json:
    """Return the lock as cyclonedx-py understands it."""
    options = [
        "--pyproject",
        str(PROJECT),
        "--sv",
        "1.6",
        "--of",
        "JSON",
        "--output-reproducible",
        "--short-PURLs",
    ]
    # -W: it warns that it does not know which package needs which; we add that.
    command = [sys.executable, "-W", "ignore", "-m", "cyclonedx_py", "requirements", *options, str(LOCK)]
    bill = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603  # our own words
    assert isinstance(bill, dict)
    return bill


def described(component: Json, licences: Json) -> Json:
    """Return *component* with its licence and its hashes, and without the text of the lock and addresses."""
    name = canonical(component["name"])
    references = component.get("externalReferences", [])
    hashes = [digest for reference in references for digest in reference.get("hashes", [])]
    parts = [
        {"type": "library", "name": part, "licenses": [{"expression": licence}]}
        for part, licence in licences["bundled"].get(name, {}).items()
    ]
    return {
        "type": component["type"],
        "bom-ref": component["purl"],
        "name": name,
        "version": component["version"],
        "purl": component["purl"],
        "licenses": [{"expression": licences["packages"][name]}],
        "hashes": sorted(hashes, key=lambda digest: str(digest["content"])),
    } | ({"components": parts} if parts else {})


def needs(name: str) -> set[str]:
    """Return what the package *name* asks for, where it is installed."""
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return set()  # of another platform
    return {canonical(line) for line in requires if "extra ==" not in line}


def direct() -> set[str]:
    """Return what the project itself asks for."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    return {canonical(line) for line in [*project["dependencies"], *extras["binary"], *extras["embedded"]]}


def bill_of_materials() -> Json:
    """Return the bill of materials, valid by the schema of CycloneDX."""
    licences = tomllib.loads(LICENCES.read_text(encoding="utf-8"))
    bill = listed()
    components = [described(component, licences) for component in bill["components"]]
    components.sort(key=lambda component: str(component["name"]))
    refs = {component["name"]: component["bom-ref"] for component in components}
    root = bill["metadata"]["component"]["bom-ref"]
    edges = {root: direct()} | {ref: needs(name) for name, ref in refs.items()}
    bill["components"] = components
    bill["dependencies"] = [
        {"ref": ref, "dependsOn": sorted(refs[name] for name in names if name in refs)}
        for ref, names in edges.items()
    ]
    for tool in bill["metadata"]["tools"]["components"]:
        tool.pop("externalReferences", None)
    return bill


def main() -> None:
    """Print it; an invalid one is never printed."""
    text = json.dumps(bill_of_materials(), indent=2) + "\n"
    complaint = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if complaint is not None:
        raise SystemExit(f"the bill of materials is not CycloneDX 1.6: {complaint}")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
