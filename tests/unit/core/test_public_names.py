"""`import pggit_reactor` is light, and its names are a decision."""

import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import pggit_reactor
from pggit_reactor import errors, receiver

HEAVY = [
    "psycopg",
    "psycopg_pool",
    "trio",
    "trio_asyncio",
    "httpx",
    "h11",
    "cryptography",
    "structlog",
    "click",
    "asyncio",
]
SECRET = "correct horse battery staple"


def loaded_by(program: str) -> set[str]:
    """Return which heavy modules a fresh interpreter has loaded after *program*."""
    show = f"import sys; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", f"{program}\n{show}"], check=True, capture_output=True, text=True, timeout=60
    )
    return set(done.stdout.split())


def test_the_public_names_are_these():
    assert sorted(pggit_reactor.__all__) == [
        "VerificationError",
        "__version__",
        "enqueue",
        "enqueue_async",
        "sign",
        "verify",
    ]
    assert set(pggit_reactor.__all__) <= set(dir(pggit_reactor))


@pytest.mark.parametrize(
    "program",
    [
        "import pggit_reactor",
        "from pggit_reactor import VerificationError, __version__",
        "from pggit_reactor import sign, verify",
        "import pggit_reactor.receiver",
        "import pggit_reactor.core.url_policy, pggit_reactor.core.outcomes, pggit_reactor.core.states",
    ],
)
def test_receivers_load_no_driver_no_event_loop_and_no_client(program):
    assert loaded_by(program) == set()


def test_the_version_is_that_of_the_project():
    project = Path(__file__).parents[3] / "pyproject.toml"

    assert pggit_reactor.__version__ == tomllib.loads(project.read_text())["project"]["version"]


def test_a_name_that_is_not_public_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'worker_that_never_was'"):
        _ = pggit_reactor.worker_that_never_was


def test_a_receiver_verifies_by_its_own_clock():
    headers = pggit_reactor.sign(b"{}", id="a", timestamp=int(time.time()), secrets=[SECRET])
    stale = pggit_reactor.sign(b"{}", id="a", timestamp=int(time.time()) - 1000, secrets=[SECRET])

    pggit_reactor.verify(b"{}", headers, SECRET)
    pggit_reactor.verify(b"{}", stale, SECRET, tolerance_seconds=2000)
    with pytest.raises(pggit_reactor.VerificationError, match="old"):
        pggit_reactor.verify(b"{}", stale, SECRET)


def test_the_names_are_those_of_the_rooms():
    assert pggit_reactor.verify is receiver.verify
    assert pggit_reactor.sign is receiver.sign
    assert pggit_reactor.VerificationError is errors.VerificationError
