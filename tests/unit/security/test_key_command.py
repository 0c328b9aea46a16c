"""Master keys from a command: what it may do, what it may not, and that nothing it prints is shown."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import attrs
import pytest

from pggit_reactor.config.load import load_settings
from pggit_reactor.config.secret_file import SECRET_FILE_BYTES_MAX
from pggit_reactor.config.settings import KeySettings
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError, KeyringError
from pggit_reactor.security.key_command import read_master_key, run_key_command

MARK = "s3cr3t"


@pytest.fixture
def program(tmp_path: Path):
    """Make a command that runs Python statements."""

    def make(code: str) -> str:
        script = tmp_path / "keys.py"
        script.write_text(f"import os, subprocess, sys, time\n{code}\n")
        return f"{sys.executable} {script} 'an argument'"

    return make


def test_what_a_command_prints_are_the_keys(program):
    keys = run_key_command(program("print('a:passphrase:' + sys.argv[1])"))

    assert keys.reveal() == "a:passphrase:an argument"


@pytest.mark.parametrize(
    ("code", "said"),
    [
        pytest.param(f"print('{MARK}'); sys.exit(3)", "ended with status 3", id="a status"),
        pytest.param(f"print('{MARK}', flush=True); os.kill(os.getpid(), 9)", "by signal 9", id="a signal"),
        pytest.param("pass", "prints nothing", id="nothing"),
        pytest.param("print('')", "prints nothing", id="an empty line"),
        pytest.param("os.write(1, b'\\xff')", "is not text", id="not text"),
        pytest.param(
            f"print('{MARK}' * {SECRET_FILE_BYTES_MAX})", f"more than {SECRET_FILE_BYTES_MAX}", id="too much"
        ),
    ],
)
def test_a_command_that_fails_is_told_without_its_output(program, code, said, capfd):
    with pytest.raises(KeyringError, match=said) as raised:
        run_key_command(program(f"print('{MARK}', file=sys.stderr)\n{code}"))

    assert MARK not in str(raised.value)
    assert MARK not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(60)",
        "print('a'); sys.stdout.flush(); time.sleep(60)",
        "os.close(1); time.sleep(60)",
        "subprocess.Popen(['/bin/sleep', '60'])",
    ],
    ids=["silent", "after some output", "with its output closed", "its child holds the pipe"],
)
def test_a_command_that_does_not_end_is_ended(program, code):
    started = time.monotonic()
    with pytest.raises(KeyringError, match=r"did not end within 0\.5 s"):
        run_key_command(program(code), seconds=0.5)

    assert time.monotonic() - started < 30


def test_no_shell_sees_the_command(tmp_path: Path):
    keys = run_key_command(f"/bin/echo 'a b' $HOME; touch {tmp_path}/made | cat")

    assert keys.reveal() == f"a b $HOME; touch {tmp_path}/made | cat"
    assert not (tmp_path / "made").exists()


def test_a_command_gets_the_environment_without_our_secrets(program, monkeypatch):
    monkeypatch.setenv("VAULT_ADDR", "here")
    monkeypatch.setenv("DATABASE_URL", MARK)
    monkeypatch.setenv("PGGIT_REACTOR_API_TOKEN_KEY", MARK)

    said = run_key_command(program("print(os.environ)")).reveal()
    assert "VAULT_ADDR" in said
    assert MARK not in said


def test_a_program_that_is_not_there_is_named():
    with pytest.raises(KeyringError, match="cannot run /no/such/program: No such file"):
        run_key_command("/no/such/program now")


def test_without_a_command_the_keys_are_those_of_the_settings():
    assert read_master_key(KeySettings()) is None
    assert read_master_key(KeySettings(master_key=Secret("k"))) == Secret("k")


@pytest.mark.parametrize("command", ["vault read", "'", "  ", "./keys"])
def test_a_command_that_could_be_any_program_is_refused(command):
    with pytest.raises(ConfigurationError, match="absolute path"):
        KeySettings(master_key_command=command)


def test_two_sources_of_keys_are_refused():
    environ = {"PGGIT_REACTOR_MASTER_KEY": MARK, "PGGIT_REACTOR_MASTER_KEY_COMMAND": "/bin/keys"}
    with pytest.raises(ConfigurationError, match="both set") as raised:
        load_settings(environ=environ)

    assert MARK not in str(raised.value)
    settings = load_settings(environ={"PGGIT_REACTOR_MASTER_KEY_COMMAND": "/bin/keys"}).settings
    with pytest.raises(ConfigurationError, match="both set"):
        attrs.evolve(settings, keys=KeySettings(master_key=Secret("k"), master_key_command="/bin/keys"))
