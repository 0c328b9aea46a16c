"""The script `./dev`: what it refuses, and when it installs."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import ModuleType

import attrs
import pytest

DEBIAN = 'PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nID=debian\n'
UBUNTU = 'NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\n'


@attrs.define(eq=False)
class Checkout:
    """A folder in which the script believes to stand, and what it would have run there."""

    root: Path
    dev: ModuleType
    ran: list[list[str]] = attrs.field(factory=list)
    venv_usable: bool = False

    def pip_runs(self) -> list[str]:
        installed = (command[-1] for command in self.ran if "pip" in command)
        return [name.removeprefix(f"{self.root}/requirements/") for name in installed]

    def venvs_made(self) -> int:
        return sum("venv" in command for command in self.ran)

    def record(self, command: list[str]) -> None:
        self.ran.append([str(part) for part in command])
        if "venv" in command:
            self.dev.VENV.mkdir(exist_ok=True)
            self.dev.STAMP.unlink(missing_ok=True)

    def install(self, lock: str) -> list[str]:
        """Install *lock* and return what pip was run for this time."""
        self.ran.clear()
        self.dev.install(lock)
        return self.pip_runs()


@pytest.fixture
def checkout(tmp_path: Path, dev: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Checkout:
    requirements = tmp_path / "requirements"
    requirements.mkdir()
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    for name in dev.LOCKS:
        (requirements / f"{name}.txt").write_text(f"{name}==1\n")
    checkout = Checkout(root=tmp_path, dev=dev)
    monkeypatch.setattr(dev, "ROOT", tmp_path)
    monkeypatch.setattr(dev, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(dev, "STAMP", tmp_path / ".venv" / "dev-stamp.json")
    monkeypatch.setattr(dev, "INSTALL_LOCK", tmp_path / ".cache" / "dev.lock")
    monkeypatch.setattr(dev, "LOCKS", {name: requirements / f"{name}.txt" for name in dev.LOCKS})
    monkeypatch.setattr(dev, "quiet", checkout.record)
    monkeypatch.setattr(dev, "usable_venv", lambda: checkout.venv_usable)
    return checkout


def test_an_old_python_is_told_which_one_is_needed(dev: ModuleType) -> None:
    complaint = dev.python_complaint((3, 10, 4), has_venv=True)

    assert "Python 3.10 is too old" in complaint
    assert "python3.11" in complaint


@pytest.mark.parametrize("system", [DEBIAN, UBUNTU])
def test_a_debian_python_without_venv_is_told_the_package(dev: ModuleType, system: str) -> None:
    assert "apt-get install python3.12-venv" in dev.python_complaint((3, 12, 1), False, system)


def test_another_python_without_venv_is_told_the_modules(dev: ModuleType) -> None:
    assert "venv and ensurepip" in dev.python_complaint((3, 11, 0), False, "ID=fedora\n")


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 2)])
def test_a_python_from_3_11_on_with_venv_is_accepted(dev: ModuleType, version: tuple[int, int, int]) -> None:
    assert dev.python_complaint(version, True, DEBIAN) is None


def test_the_first_install_makes_a_venv_and_installs_the_lock_and_the_project(checkout: Checkout) -> None:
    assert checkout.install("run") == ["run.txt", str(checkout.root)]
    assert checkout.venvs_made() == 1


def test_locked_packages_are_installed_by_hash_and_never_built(checkout: Checkout) -> None:
    checkout.install("dev")
    locked, project = (command for command in checkout.ran if "pip" in command)

    assert "--require-hashes" in locked
    assert locked[locked.index("--only-binary") + 1] == ":all:"
    assert {"--no-deps", "--no-build-isolation", "--no-index"} <= set(project)


def test_a_second_install_does_nothing(checkout: Checkout) -> None:
    checkout.install("dev")

    assert checkout.install("dev") == []


def test_what_the_developer_has_serves_the_demo(checkout: Checkout) -> None:
    checkout.install("dev")

    assert checkout.install("run") == []


def test_what_the_demo_has_does_not_serve_the_developer(checkout: Checkout) -> None:
    checkout.install("run")

    assert checkout.install("dev") == ["dev.txt"]


def test_the_resolver_is_installed_without_the_project(checkout: Checkout) -> None:
    assert checkout.install("lock") == ["lock.txt"]


def test_a_changed_lock_is_installed_over_the_old_one(checkout: Checkout) -> None:
    checkout.install("run")
    checkout.dev.LOCKS["run"].write_text("run==2\n")

    assert checkout.install("run") == ["run.txt"]
    assert checkout.venvs_made() == 0


def test_a_changed_project_file_installs_the_project_again(checkout: Checkout) -> None:
    checkout.install("run")
    (checkout.root / "pyproject.toml").write_text('[project]\nname = "x"\n')

    assert checkout.install("run") == [str(checkout.root)]


def test_a_venv_of_another_python_is_made_anew(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout.install("run")
    monkeypatch.setattr(checkout.dev, "PYTHON_MINOR", "3.99")

    assert checkout.install("run") == ["run.txt", str(checkout.root)]
    assert checkout.venvs_made() == 1


def test_a_venv_that_somebody_made_by_hand_is_kept(checkout: Checkout) -> None:
    checkout.venv_usable = True
    checkout.dev.VENV.mkdir()

    assert checkout.install("run") == ["run.txt", str(checkout.root)]
    assert checkout.venvs_made() == 0


def test_a_failed_install_is_tried_again(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: str) -> None:
        raise checkout.dev.DevError("no network")

    with monkeypatch.context() as broken:
        broken.setattr(checkout.dev, "pip", refuse)
        with pytest.raises(checkout.dev.DevError):
            checkout.dev.install("run")

    assert checkout.install("run") == ["run.txt", str(checkout.root)]


def test_a_stamp_that_cannot_be_read_means_nothing_was_installed(checkout: Checkout) -> None:
    checkout.install("run")
    checkout.dev.STAMP.write_text("{")

    assert checkout.install("run") == ["run.txt", str(checkout.root)]


def test_two_installers_do_not_meet_and_the_second_finds_the_work_done(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = threading.Event()
    monkeypatch.setattr(checkout.dev, "say", lambda text: told.set() if "waiting" in text else None)
    checkout.install("run")
    stamp = json.loads(checkout.dev.STAMP.read_text())
    checkout.dev.STAMP.unlink()
    second = threading.Thread(target=checkout.install, args=("run",))

    with checkout.dev.INSTALL_LOCK.open("w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        second.start()
        assert told.wait(10)
        checkout.dev.STAMP.write_text(json.dumps(stamp))
    second.join(10)

    assert not second.is_alive()
    assert checkout.pip_runs() == []


@pytest.fixture
def started(checkout: Checkout, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the script has turned into."""
    commands: list[list[str]] = []
    monkeypatch.setattr(checkout.dev, "become", lambda *command: commands.append(list(command)))
    return commands


def test_the_tests_run_without_the_long_ones_unless_all_are_asked_for(
    checkout: Checkout, started: list[list[str]]
) -> None:
    checkout.dev.main(["test", "-x", "tests/unit"])
    checkout.dev.main(["test", "--all", "-x"])

    assert [command[1:] for command in started] == [
        ["-m", "pytest", "-m", "not long", "-x", "tests/unit"],
        ["-m", "pytest", "-x"],
    ]


@pytest.mark.parametrize(
    ("typed", "product"),
    [(["demo"], ["demo"]), (["up", "--data", "d"], ["up", "--data", "d"]), (["run", "doctor"], ["doctor"])],
)
def test_words_of_the_product_are_handed_to_it(
    checkout: Checkout, started: list[list[str]], typed: list[str], product: list[str]
) -> None:
    checkout.dev.main(typed)

    assert started == [[str(checkout.dev.VENV / "bin" / "pggit-reactor"), *product]]


def test_clean_leaves_the_users_data_alone(checkout: Checkout) -> None:
    kept, removed = checkout.root / ".reactor" / "up", checkout.root / "package" / "__pycache__"
    for folder in (kept, removed, checkout.dev.VENV):
        folder.mkdir(parents=True)

    checkout.dev.main(["clean"])

    assert kept.is_dir()
    assert not removed.exists()
    assert not checkout.dev.VENV.exists()


def test_checks_all_run_although_the_first_fails(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    monkeypatch.setattr(checkout.dev, "run_tool", lambda name, command: ran.append(name) or name != "lint")

    assert checkout.dev.main(["check"]) == 1
    assert ran == list(checkout.dev.checks())
    assert capsys.readouterr().err.endswith("not green: lint\n")


@pytest.mark.parametrize(("arguments", "status"), [([], 2), (["--help"], 0), (["no-such-word"], 2)])
def test_the_script_explains_itself_without_installing(root: Path, arguments: list[str], status: int) -> None:
    done = subprocess.run(
        [sys.executable, root / "dev", *arguments], capture_output=True, text=True, check=False, env={}
    )

    assert done.returncode == status
    assert "usage: ./dev WORD" in done.stdout + done.stderr
