"""Files of secrets: who else may read them, and what they may hold."""

import os
import stat

import pytest

from pggit_reactor.config.secret_file import (
    SECRET_FILE_BYTES_MAX,
    mode_complaint,
    read_secret_file,
    write_secret_file,
)
from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import ConfigurationError

ROOT, SOMEBODY = 0, 1000


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700, 0o640, 0o440])
def test_a_file_of_root_may_be_read_by_its_group(mode):
    """Kubernetes mounts a secret so for a pod with an fsGroup: root's, mode 0440."""
    assert mode_complaint(stat.S_IFREG | mode, ROOT) is None


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_file_of_anybody_may_be_read_by_its_owner(mode):
    assert mode_complaint(stat.S_IFREG | mode, SOMEBODY) is None


@pytest.mark.parametrize(
    ("mode", "owner", "complaint"),
    [
        (0o644, ROOT, "everybody may read it (mode 0644)"),
        (0o604, SOMEBODY, "everybody may read it (mode 0604)"),
        (0o602, ROOT, "everybody may change it (mode 0602)"),
        (0o640, SOMEBODY, "its group may read it (mode 0640)"),
        (0o440, SOMEBODY, "its group may read it (mode 0440)"),
        (0o660, ROOT, "its group may change it (mode 0660)"),
        (0o620, ROOT, "its group may change it (mode 0620)"),
    ],
)
def test_others_may_neither_read_nor_change_it(mode, owner, complaint):
    text = mode_complaint(stat.S_IFREG | mode, owner)

    assert text is not None
    assert text.startswith(complaint)
    assert "right is mode 0600 (chmod 600), or 0440 where root owns it" in text


@pytest.mark.parametrize("octets", [b"a secret", b"a secret\n", b"a secret\r\n\n", b"\xef\xbb\xbfa secret\n"])
def test_line_ends_and_a_byte_order_mark_are_no_part_of_a_secret(tmp_path, octets):
    path = tmp_path / "secret"
    path.write_bytes(octets)
    path.chmod(0o600)

    assert read_secret_file(path) == Secret("a secret")


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xff\xfehunter22", "is not text; right is UTF-8"),
        (b"hunter22" * 10_000, f"is larger than {SECRET_FILE_BYTES_MAX} bytes"),
    ],
)
def test_a_file_that_holds_no_secret_of_ours_is_refused_and_not_quoted(tmp_path, octets, complaint):
    path = tmp_path / "secret"
    path.write_bytes(octets)
    path.chmod(0o600)

    with pytest.raises(ConfigurationError) as caught:
        read_secret_file(path)

    assert complaint in str(caught.value)
    assert "hunter22" not in str(caught.value)


def test_a_link_is_followed_and_its_target_judged(tmp_path):
    """Kubernetes mounts secrets as links."""
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("a secret")
    link.symlink_to(target)
    target.chmod(0o604)

    with pytest.raises(ConfigurationError, match="everybody may read it"):
        read_secret_file(link)

    target.chmod(0o600)
    assert read_secret_file(link) == Secret("a secret")


def test_a_pipe_that_nobody_writes_to_is_refused_at_once(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o600)

    with pytest.raises(ConfigurationError, match="is not an ordinary file"):
        read_secret_file(path)


@pytest.mark.parametrize("name", [".", "no/such/file"])
def test_what_is_no_file_is_an_error_of_configuration(tmp_path, name):
    with pytest.raises(ConfigurationError, match=r"is not an ordinary file|cannot be read"):
        read_secret_file(tmp_path / name)


@pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
def test_a_name_that_no_file_can_have_is_an_error_of_configuration(tmp_path, name):
    with pytest.raises(ConfigurationError, match="is not a path"):
        read_secret_file(tmp_path / name)


def test_a_written_secret_is_its_owners_alone_whatever_the_mask(tmp_path):
    before = os.umask(0)
    try:
        write_secret_file(tmp_path / "key", Secret("a secret"))
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert read_secret_file(tmp_path / "key") == Secret("a secret")


def test_a_secret_is_never_written_over_another(tmp_path):
    write_secret_file(tmp_path / "key", Secret("a secret"))

    with pytest.raises(ConfigurationError, match="exists already"):
        write_secret_file(tmp_path / "key", Secret("another"))

    assert read_secret_file(tmp_path / "key") == Secret("a secret")


def test_a_folder_that_is_not_there_is_an_error_of_configuration(tmp_path):
    with pytest.raises(ConfigurationError, match="cannot be written: No such file or directory"):
        write_secret_file(tmp_path / "no" / "key", Secret("a secret"))
