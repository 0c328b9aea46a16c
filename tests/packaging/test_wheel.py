"""The wheel is whole: what a checkout finds beside the package is inside it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
    (built,) = folder.glob("pggit_reactor-*.whl")
    return built


def test_it_holds_every_module_statement_and_migration(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())

    package = ROOT / "pggit_reactor"
    wanted = {
        str(path.relative_to(ROOT)) for path in package.rglob("*") if path.suffix in {".py", ".sql", ".typed"}
    }
    wanted |= {f"pggit_reactor/migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")}
    assert wanted <= inside


def test_it_holds_nothing_that_only_the_house_needs(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        folders = {name.split("/")[0] for name in archive.namelist()}

    assert {folder for folder in folders if not folder.endswith(".dist-info")} == {"pggit_reactor"}


def test_the_migrations_are_found_where_no_checkout_is(wheel: Path, tmp_path: Path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)

    program = (
        "from pggit_reactor.db.migrate import load_migrations as load; print([m.file_name for m in load()])"
    )
    # -P and a foreign folder: the checkout, which is installed as editable, must not be what is imported.
    ran = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert ran.stdout.strip() == str(sorted(path.name for path in (ROOT / "migrations").glob("*.sql")))
