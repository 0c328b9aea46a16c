"""docs/settings.md is what its generator writes, and what it shows can be loaded."""

from __future__ import annotations

import re
import runpy
import tomllib
from pathlib import Path

from pggit_reactor.config.load import load_settings

DOCS = Path(__file__).parents[3] / "docs"
PAGE = DOCS / "settings.md"


def test_the_page_is_up_to_date():
    generator = runpy.run_path(str(DOCS / "generate_settings.py"))

    assert PAGE.read_text() == generator["page"](), "run .venv/bin/python docs/generate_settings.py"


def test_the_file_that_the_page_shows_is_taken(tmp_path):
    shown = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(shown) == 1
    place = tmp_path / "reactor.toml"
    place.write_text(shown[0])
    settings = load_settings(environ={}, toml_path=place).settings

    assert settings.worker.poll_seconds == tomllib.loads(shown[0])["worker"]["poll_seconds"]
    assert settings.egress.rules().ports == {443, 8443}
