"""Long runs: ``./dev fuzz TARGET [--seconds N]``, guided by coverage where atheris is installed.

``./dev fuzz`` installs it, where there is a build of it for the machine; else inputs are mutated without a guide.
What is found is a file in ``fuzz/findings``: mend the cause, and keep it as a seed, which every test run tries
again: ``.venv/bin/python -m fuzz.corpus TARGET NAME FILE``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import sys
import time
from pathlib import Path
from random import Random, SystemRandom

ROOT = Path(__file__).parent
FINDINGS = ROOT / "findings"
KEPT = ROOT.parent / ".cache" / "fuzz"
NAMES = ("answer", "url", "address", "verifier", "retry_after")
OCTETS_MAX = 4096


def main() -> int:
    parser = argparse.ArgumentParser(prog="./dev fuzz", description=__doc__)
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("--seconds", type=int, default=60, help="how long (60)")
    parser.add_argument("--seed", type=int, help="of the run without a guide; printed by default")
    options = parser.parse_args()
    FINDINGS.mkdir(exist_ok=True)
    if importlib.util.find_spec("atheris") is None:
        return run_unguided(options.target, options.seconds, options.seed)
    return run_guided(options.target, options.seconds)


def run_guided(name: str, seconds: int) -> int:
    """Hand over to libFuzzer, which ends the process; inputs that reach new code are kept for the next run."""
    import atheris

    with atheris.instrument_imports(include=["pggit_reactor", "idna", "ipaddress", "h11"]):
        from fuzz.corpus import seeds
        from fuzz.targets import TARGETS
    kept = KEPT / name
    kept.mkdir(parents=True, exist_ok=True)
    for title, octets in seeds(name).items():
        (kept / f"seed-{title}").write_bytes(octets)
    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", f"-max_len={OCTETS_MAX}",
        f"-artifact_prefix={FINDINGS}/{name}-", str(kept),
    ]  # fmt: skip
    atheris.Setup(arguments, TARGETS[name])
    atheris.Fuzz()
    return 0


def run_unguided(name: str, seconds: int, seed: int | None) -> int:
    from fuzz.corpus import seeds
    from fuzz.mutations import mutated
    from fuzz.targets import TARGETS

    seed = SystemRandom().getrandbits(32) if seed is None else seed
    random, known, target = Random(seed), tuple(seeds(name).values()), TARGETS[name]
    print(f"{name}: without a guide, seed {seed}, {seconds} s")
    started, count = time.monotonic(), 0
    while time.monotonic() - started < seconds:
        octets = mutated(known, random)[:OCTETS_MAX]
        count += 1
        try:
            target(octets)
        except BaseException:
            path = FINDINGS / f"{name}-{hashlib.sha256(octets).hexdigest()[:16]}"
            path.write_bytes(octets)
            print(f"after {count} inputs: {path} holds {octets!r}", file=sys.stderr)
            raise
    print(f"{name}: {count} inputs, {count / seconds:.0f}/s, nothing found")
    return 0


if __name__ == "__main__":
    sys.exit(main())
