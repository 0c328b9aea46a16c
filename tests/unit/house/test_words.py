"""Words that no file of the repository may hold."""

from __future__ import annotations

import hashlib
import re

import pytest

# Registries and file stores. Their names may not stand in the repository, so their digests do.
FORBIDDEN_HOST_DIGESTS = {
    "00a7dc5a0cc388586b8665846e7d8ae94a6dd096f2aa1aa3b4aab4ac484f998a",
    "0fd460f0568e29c129d5164443c22dc23e1fa5ade91d6cc915a0c74ce08fba57",
    "1ba4e37997a2e986efa6cd844e43fd25b9e816359d31612baa9c18b71e3b5294",
    "271dacc9f4d0caf8ff708d7751532df465f1b6bf192cc169e6afc639faed6894",
    "2e97613f5a81eaa4f8a58f552a005713c0c8f333e026efb7771ad28429532374",
    "3530c4415dd857fb74a542a51c41453902e3a51739cd5f266999c93cc0022aab",
    "3ca29e55be4befa48f875d24c27f9bed32fe06588819ed6264084b6670a1ebb0",
    "4a44cd47430c9be11209ab67fe7908ecf2a0f7d8847b56b0dbe9b64468af30b1",
    "51c6b9f69c48a75b146d2785c3d70d336d5fdce24868f2e22db377d736f2ef24",
    "62a5795f9b8971188a4ec729cbe7418e62bba6ffd5bfaec38dd5cb0c1be42eeb",
    "70cca582c4895337b234bb640fa2c13c72816d8ea4f6d8f679607a2e9c414ccb",
    "71741fe2460a615058687c4585f665af5e825968e51a512ffb14c6f2684a397d",
    "789e46d79514e28093cabe2bb4a0798266f584b0e508ef269ebabb6e57859290",
    "8454fabc8b6309019c8b0d10a414a7c0f0bcdf3222f5285e7d8da9eb6c9e0c93",
    "8743857e3ea00fd1c64bbc68b8af241954ad2c285e7a60340eec7ea5dcb200db",
    "87d14f070cb9686970d008f9f94e668075fd37620381409858bf040ae1271d51",
    "88bb79fa6efc5d55c70ed478e2e48f058c387b77c4e99ad1f73b9a5bfa237d2c",
    "8b5bb5eb9d758455b8635855cf8aaf05b68775e3f83f0291e800ef338fb9783c",
    "901e094d4cd2ee70ae274db4ab62bb4e7a6133e29949f7d707d1cee15c3b06fa",
    "9c6b05022d03bb0559d856fbea303f3b278bd3a993531bd7a46fe71804243830",
    "a0f007d863a0ed19c5bd996ef6eaab194af2f1ac685c0f71a75270a0366f8983",
    "a4aa2ac280bb8d1a0ce7a1be5a7bfb10292b49fe9435ad5cff19f421f3c70e41",
    "ad41c2b07d1538e576df1442747ba285a2a6bcf9115674686c3af13ecde72e54",
    "ae1f45a5b387e18db0a15c185f48960f5ed9ab8b7f74b9236eed1dfac1f46564",
    "bd048f6f965d0e9ccdcdb603d0c8c2ae3d2f3e25e5e7a2349a1532bcc73aaf6f",
    "c3db8466ffcd858989be3a43536c07568731e95124fb23850abac30074fac4f3",
    "c4fcb9f83b10f602d1703106fd0dfac92d78e322b61c4e684e8b6d5a71c1530f",
    "d6d7019ca9fcbf07c769e445342515ef0c92e4f18a96adbb3bf6460f5b0ba17f",
    "e2dd3580aeebec6412c05eea976bbe4ceaf03cac38d78d6f77ee0cc0807c1101",
    "e680c440a2e92079ab1bf7a927e8d3920f1bcd173c0487e28e020110b2e59efc",
    "e83cc4bcd94e4ed54ac0180a4accddaca7dfd0e8668b2e758274eecf9f83743a",
    "ea0d3d5c3c27a0ba3ec9042d12006492b7a92f31857695c3680da6dfa0fc6e21",
}
HOST = re.compile(r"(?<![\w.-])(?:[a-z0-9-]+\.)+[a-z]{2,}(?![\w-])", re.IGNORECASE)
# What turns an address into a download: an archive at its end, or an option that takes it.
DOWNLOADS = {
    "https://files.example.com/a-1.0.tar.gz": re.compile(
        r"https?://[^\s\"'<>]+\.(?:whl|tar|t?[gx]z|tgz|bz2|zst|zip|deb|rpm|exe|msi|sh)(?![\w.])"
    ),
    "git+https://code.example.com/a": re.compile(r"\bgit\+(?:https?|ssh)://"),
    "--extra-index-url" + "=x": re.compile(r"--(?:extra-)?index-url[= ]|--find-links[= ]|--trusted-host[= ]"),
    "index-url " + "= x": re.compile(r"(?<!emit-)\b(?:extra-)?(?:index[-_]url|find[-_]links)\s*="),
    "curl -O https://a.example.com": re.compile(r"\b(?:curl|wget)\b[^\n|;]*\s-(?:O|-remote-name)\b"),
}
MACHINE_PATH = re.compile(r"(?<![\w.~}])/(?:home|root|Users|work|workspace|mnt)/\w")
UNFINISHED = re.compile(r"\b(?:TO{1}DO|FIX{1}ME|X{3})\b")
# The patterns above need examples of what they find.
ABOUT_THESE_WORDS = "tests/unit/house/test_words.py"


def offenders(texts: dict[str, str], pattern: re.Pattern[str]) -> list[str]:
    return [
        f"{path}:{text.count(chr(10), 0, found.start()) + 1}: {found.group()}"
        for path, text in texts.items()
        if path != ABOUT_THESE_WORDS
        for found in pattern.finditer(text)
    ]


def is_forbidden_host(name: str) -> bool:
    """Tell whether *name* is one of the forbidden hosts or lies below one."""
    labels = name.lower().split(".")
    tails = (".".join(labels[start:]) for start in range(len(labels) - 1))
    return any(hashlib.sha256(tail.encode()).hexdigest() in FORBIDDEN_HOST_DIGESTS for tail in tails)


def test_no_file_names_a_registry(texts: dict[str, str]) -> None:
    named = [f"{path}: {name}" for path, text in texts.items() for name in HOST.findall(text)]

    assert [line for line in named if is_forbidden_host(line.rpartition(" ")[2])] == []


def test_the_search_for_registries_sees_names_in_text() -> None:
    assert HOST.findall("see https://Files.Registry.example/simple, or b.example.") == [
        "Files.Registry.example",
        "b.example",
    ]
    assert len(FORBIDDEN_HOST_DIGESTS) > 20


@pytest.mark.parametrize("sample", DOWNLOADS)
def test_no_file_holds_a_download_address(texts: dict[str, str], sample: str) -> None:
    pattern = DOWNLOADS[sample]

    assert pattern.search(sample)
    assert offenders(texts, pattern) == []


def test_locks_and_tools_hold_no_address_at_all(texts: dict[str, str]) -> None:
    silent = re.compile(r"(?:requirements/.*|pyproject\.toml|dev|\.ci/.*|\.pre-commit-config\.yaml)")
    told = {path: text for path, text in texts.items() if silent.fullmatch(path)}

    assert len(told) >= 6
    assert offenders(told, re.compile(r"\w+://\S+")) == []


def test_no_file_holds_a_path_of_somebodys_machine(texts: dict[str, str]) -> None:
    assert MACHINE_PATH.search("see /home/ann/notes")
    assert offenders(texts, MACHINE_PATH) == []


def test_nothing_is_left_unfinished_in_words(texts: dict[str, str]) -> None:
    assert UNFINISHED.search("# to".upper() + "do".upper())
    assert offenders(texts, UNFINISHED) == []
