"""``python -m pggit_reactor``: the same as the command ``pggit-reactor``."""

from __future__ import annotations

from pggit_reactor.cli.main import main

if __name__ == "__main__":
    main()
