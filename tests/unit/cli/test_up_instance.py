from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import attrs
import psycopg.conninfo
import pytest

from pggit_reactor.cli.up_instance import FILE_NAME, UpInstance, find_up, forget_up, passed_on
from pggit_reactor.errors import ConfigurationError, NotFoundError


@pytest.fixture
def instance(tmp_path) -> UpInstance:
    return UpInstance(
        pid=os.getpid(),
        host="127.0.0.1",
        port=54329,
        user="reactor",
        database="postgres",
        passfile=tmp_path / "a folder & more?" / "pgpass",
        master_key_file=tmp_path / "master.key",
        bin_dir=Path("/opt/postgres/bin"),
        environ={"PGGIT_REACTOR_EGRESS_UNSAFE_ALLOW": "127.0.0.1:8443"},
    )


def test_what_was_written_is_found(tmp_path, instance):
    instance.write(tmp_path)

    assert find_up(tmp_path) == instance


def test_one_that_an_older_version_wrote_is_found(tmp_path, instance):
    instance.write(tmp_path)
    fields = json.loads((tmp_path / FILE_NAME).read_text())
    del fields["environ"]
    (tmp_path / FILE_NAME).write_text(json.dumps(fields))

    assert find_up(tmp_path) == attrs.evolve(instance, environ={})


def test_only_where_requests_may_go_and_whom_to_trust_is_passed_on(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    environ = {
        "PGGIT_REACTOR_MASTER_KEY": "s3cret",
        "PGGIT_REACTOR_EGRESS_PORTS": "443,8443",
        "PGGIT_REACTOR_EGRESS_ALLOW": "",
        "SSL_CERT_FILE": "ca.pem",
    }

    assert passed_on(environ) == {
        "PGGIT_REACTOR_EGRESS_PORTS": "443,8443",
        "SSL_CERT_FILE": str(tmp_path / "ca.pem"),
    }


def test_the_dsn_names_the_password_file_whatever_its_path(instance):
    parameters = psycopg.conninfo.conninfo_to_dict(instance.dsn)

    assert parameters == {
        "user": "reactor",
        "host": "127.0.0.1",
        "port": "54329",
        "dbname": "postgres",
        "passfile": str(instance.passfile),
    }


def test_none_is_found_where_none_was_started_or_it_was_stopped(tmp_path, instance):
    with pytest.raises(NotFoundError, match="start one with `pggit-reactor up`"):
        find_up(tmp_path)
    instance.write(tmp_path)
    forget_up(tmp_path)
    with pytest.raises(NotFoundError):
        find_up(tmp_path)


def test_one_that_ended_without_a_word_is_not_running(tmp_path, instance):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    attrs.evolve(instance, pid=ended.pid).write(tmp_path)

    with pytest.raises(NotFoundError, match=f"process {ended.pid}\\) has ended"):
        find_up(tmp_path)


@pytest.mark.parametrize("text", ["", "no json", "[]", "{}", '{"pid": "x"}'])
def test_a_file_that_up_did_not_write_is_refused(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)

    with pytest.raises(ConfigurationError, match=FILE_NAME):
        find_up(tmp_path)
