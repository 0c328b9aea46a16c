"""The seeds: inputs from which mutation starts, and findings of the past, which every test run tries again.

``fuzz/corpus/TARGET.json`` maps the name of each, which says what it is, to its octets as Latin-1 text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(__file__).with_name("corpus")


def seeds(target: str) -> dict[str, bytes]:
    """Return the seeds of *target* by name."""
    texts = json.loads((FOLDER / f"{target}.json").read_text(encoding="utf-8"))
    return {name: text.encode("latin-1") for name, text in texts.items()}


def add(target: str, name: str, octets: bytes) -> None:
    """Write one more seed."""
    texts = {known: text.decode("latin-1") for known, text in seeds(target).items()}
    texts[name] = octets.decode("latin-1")
    text = json.dumps(dict(sorted(texts.items())), indent=2) + "\n"
    (FOLDER / f"{target}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":  # python -m fuzz.corpus TARGET NAME FILE
    add(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_bytes())
