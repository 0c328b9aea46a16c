"""The key ring: master keys by id, the keys derived from them, and the proof that a key is the right one.

A master key is never used itself. Its *root* is the key's own 32 octets, or PBKDF2 of a passphrase and a
salt; from the root HKDF-SHA256 derives one key a purpose, so that a key which is handed out (`key url-key`)
opens what it is for and nothing else.

The salt of a passphrase belongs to a database: the first check value invents it, every process that verifies
the check value adopts it, and each sealed value repeats it, so that a value opens by itself. A derivation
takes a good part of a second and is kept, one for each key id and salt. Calls that may be that slow say so
and have an async twin that works in a thread; whatever concerns raw keys only is always quick.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import itertools
import os
import re
import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import date
from enum import StrEnum
from typing import Final

import attrs
import trio
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from pggit_reactor.core.secret import Secret
from pggit_reactor.errors import KeyringError

KEY_OCTETS: Final = 32
SALT_OCTETS: Final = 16
PBKDF2_ROUNDS: Final = 600_000
PASSPHRASE_CHARACTERS_MIN: Final = 8
KEYS_MAX: Final = 32
ROOTS_MAX: Final = 256
"""Derivations kept; beyond it the oldest is forgotten, so that foreign salts cannot fill the memory."""

_INFO_PREFIX: Final = b"pggit-reactor/1/"
_CHECK_PURPOSE: Final = "check"
_CHECK_FORMAT: Final = 1
_KEY_ID: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,31}")
_RIGHT: Final = "right is ID:base64:... (32 octets) or ID:passphrase:...; `pggit-reactor key new` prints one"


class _Kind(StrEnum):
    BASE64 = "base64"
    PASSPHRASE = "passphrase"  # noqa: S105  # the word for one, not one


@attrs.frozen(kw_only=True)
class _MasterKey:
    key_id: str
    kind: _Kind
    material: Secret[bytes]


@attrs.define(eq=False, repr=False)
class Keyring:
    """Master keys by id; made by `parse`. Safe to share between threads.

    Shows nothing but ids: no text, error or repr of it holds a key or a passphrase.
    """

    _keys: Mapping[str, _MasterKey]
    _random_octets: Callable[[int], bytes] = os.urandom
    _salts: dict[str, bytes] = attrs.field(factory=dict, init=False)
    _roots: dict[tuple[str, bytes], Secret[bytes]] = attrs.field(factory=dict, init=False)
    _slow: threading.Lock = attrs.field(factory=threading.Lock, init=False)

    @classmethod
    def parse(cls, text: Secret[str], *, random_octets: Callable[[int], bytes] = os.urandom) -> Keyring:
        """Read keys, one a line or separated by commas; the first is active; ``#`` starts a comment line.

        KeyringError names the entry by its number and never quotes it.
        """
        keys: dict[str, _MasterKey] = {}
        for number, entry in enumerate(_entries(text.reveal()), start=1):
            key = _parse_entry(entry, number)
            if key.key_id in keys:
                raise KeyringError(
                    f"master key {number}: the id {key.key_id!r} stands twice; right is one key an id"
                )
            keys[key.key_id] = key
        if not keys:
            raise KeyringError(f"the master key is empty; {_RIGHT}")
        if len(keys) > KEYS_MAX:
            raise KeyringError(
                f"{len(keys)} master keys; right is at most {KEYS_MAX}: drop those that seal nothing"
            )
        return cls(keys, random_octets)

    def __repr__(self) -> str:
        return f"<Keyring {', '.join(self._keys)}>"

    @property
    def active_id(self) -> str:
        """The id of the key that seals."""
        return next(iter(self._keys))

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, the active one first."""
        return tuple(self._keys)

    def sealing_with(self, key_id: str) -> Keyring:
        """Return the same ring, and what it has derived, with *key_id* as the active key."""
        self._key(key_id)
        other = Keyring({key_id: self._keys[key_id], **self._keys}, self._random_octets)
        other._salts, other._roots, other._slow = self._salts, self._roots, self._slow  # a twin
        return other

    def salt(self, key_id: str) -> bytes:
        """Return the salt that goes into what *key_id* seals now; empty for a raw key."""
        if self._key(key_id).kind is _Kind.BASE64:
            return b""
        salt = self._salts.get(key_id)
        # setdefault: of two threads that both found none, one wins and both use its salt.
        return salt if salt is not None else self._salts.setdefault(key_id, self._random_octets(SALT_OCTETS))

    def is_quick(self, key_id: str, *, salt: bytes | None = None) -> bool:
        """Tell whether `derive` answers at once: a raw key, a known derivation, or an id that is not here."""
        key = self._keys.get(key_id)
        if key is None or key.kind is _Kind.BASE64:
            return True
        return (key_id, self.salt(key_id) if salt is None else salt) in self._roots

    def derive(self, key_id: str, purpose: str, *, salt: bytes | None = None) -> bytes:
        """Return 32 octets of *key_id* for *purpose*. Slow for a passphrase whose salt is new: `is_quick`.

        *salt* is `salt(key_id)` where it is not given. KeyringError where the ring lacks the id, or where the
        salt is not of the key's kind.
        """
        root = self._root(self._key(key_id), self.salt(key_id) if salt is None else salt)
        derivation = HKDF(
            algorithm=SHA256(), length=KEY_OCTETS, salt=None, info=_INFO_PREFIX + purpose.encode()
        )
        return derivation.derive(root.reveal())

    def check_value(self, key_id: str) -> bytes:
        """Return what proves later that a key is this one, and does not tell it. Slow for a passphrase.

        Whoever stores it must yield to one that is stored already, and `verify_check` that: of two processes
        that start on an empty database only one salt may win.
        """
        salt = self.salt(key_id)
        return bytes((_CHECK_FORMAT, len(salt))) + salt + self.derive(key_id, _CHECK_PURPOSE, salt=salt)

    def verify_check(self, key_id: str, value: bytes) -> bool:
        """Tell whether *value* was made by this key, and adopt its salt if so. Slow for a passphrase.

        False also where the value was made by a key of the other kind; KeyringError where it is malformed.
        """
        salt, proof = _split_check(key_id, value)
        key = self._key(key_id)
        if bool(salt) != (key.kind is _Kind.PASSPHRASE):
            return False
        if not hmac.compare_digest(self.derive(key_id, _CHECK_PURPOSE, salt=salt), proof):
            return False
        if salt:
            self._salts[key_id] = salt
        return True

    async def verify_checks(self, checks: Mapping[str, bytes]) -> None:
        """Refuse where a key of *checks* (check values by id) is wrong or missing, naming all such ids.

        Pass the check values of all keys that are not retired. Works in a thread; raises KeyringError.
        """
        missing = [key_id for key_id in checks if key_id not in self._keys]
        wrong = [
            key_id
            for key_id in checks
            if key_id in self._keys and not await self._verify(key_id, checks[key_id])
        ]
        await trio.lowlevel.checkpoint()
        complaints = []
        if wrong:
            complaints.append(
                f"{_named(wrong)} not what this database was sealed with: the id is right, the key is not"
            )
        if missing:
            complaints.append(f"{_named(missing)} missing, and this database was sealed with it")
        if complaints:
            raise KeyringError(
                f"{'; '.join(complaints)}. Right is the key file that this database was sealed with"
            )

    async def prepare(self) -> None:
        """Derive the active key in a thread, so that sealing is quick from then on."""
        await trio.to_thread.run_sync(self.derive, self.active_id, _CHECK_PURPOSE)

    async def _verify(self, key_id: str, value: bytes) -> bool:
        return await trio.to_thread.run_sync(self.verify_check, key_id, value)

    def _key(self, key_id: str) -> _MasterKey:
        try:
            return self._keys[key_id]
        except KeyError:
            raise KeyringError(
                f"the key ring lacks the master key {key_id!r}; it has {', '.join(map(repr, self._keys))}"
            ) from None

    def _root(self, key: _MasterKey, salt: bytes) -> Secret[bytes]:
        if len(salt) != (SALT_OCTETS if key.kind is _Kind.PASSPHRASE else 0):
            raise KeyringError(
                f"master key {key.key_id!r} is a {key.kind}: a salt of {len(salt)} octets is not its own"
            )
        if key.kind is _Kind.BASE64:
            return key.material
        root = self._roots.get((key.key_id, salt))
        if root is not None:
            return root
        with self._slow:
            # Another thread may have derived the same while this one waited.
            if (key.key_id, salt) not in self._roots:
                octets = hashlib.pbkdf2_hmac("sha256", key.material.reveal(), salt, PBKDF2_ROUNDS, KEY_OCTETS)
                self._roots[key.key_id, salt] = Secret(octets)
            root = self._roots[key.key_id, salt]
            while len(self._roots) > ROOTS_MAX:
                del self._roots[next(iter(self._roots))]
        return root


def require_keyring(text: Secret[str] | None) -> Keyring:
    """Return the ring of *text*; `KeyringError` says what to set where there is none."""
    if text is None:
        raise KeyringError(
            "no master key is set; set PGGIT_REACTOR_MASTER_KEY_FILE to a key file "
            "(`pggit-reactor key new` prints a key for it), or PGGIT_REACTOR_MASTER_KEY_COMMAND to what prints keys"
        )
    return Keyring.parse(text)


def new_key_id(day: date, *, taken: Collection[str] = ()) -> str:
    """Return an id such as ``k20261124``, with a number behind it where that is *taken*."""
    plain = f"k{day:%Y%m%d}"
    numbered = (f"{plain}-{number}" for number in itertools.count(2))
    return next(key_id for key_id in itertools.chain((plain,), numbered) if key_id not in taken)


def new_key_line(key_id: str, octets: bytes) -> str:
    """Return the line of a key file for 32 random *octets*. The line is the secret itself: print it once."""
    assert len(octets) == KEY_OCTETS
    if not is_key_id(key_id):
        raise KeyringError(f"{key_id!r} is not a key id; right is a lower-case name such as k20261124")
    return f"{key_id}:{_Kind.BASE64}:{base64.b64encode(octets).decode()}"


def is_key_id(text: str) -> bool:
    """Tell whether *text* may name a key: 1 to 32 of a to z, 0 to 9, ``_``, ``.`` and ``-``."""
    return _KEY_ID.fullmatch(text) is not None


def _entries(text: str) -> Iterable[str]:
    for line in text.split("\n"):
        if not line.lstrip().startswith("#"):
            yield from filter(None, (entry.strip() for entry in line.split(",")))


def _parse_entry(entry: str, number: int) -> _MasterKey:
    # Until all three parts are known to be in place, any of them may be the secret: only the number is told.
    key_id, kind, material = (*entry.split(":", 2), "", "")[:3]
    if kind not in set(_Kind):
        raise KeyringError(
            f"master key {number} is not of the form ID:KIND:KEY (a passphrase may hold no comma); {_RIGHT}"
        )
    if not is_key_id(key_id):
        raise KeyringError(
            f"master key {number}: its id is not 1 to 32 of a to z, 0 to 9, '_', '.' and '-', "
            f"beginning with a letter or digit; {_RIGHT}"
        )
    octets = _raw_octets(key_id, material) if kind == _Kind.BASE64 else _passphrase_octets(key_id, material)
    return _MasterKey(key_id=key_id, kind=_Kind(kind), material=Secret(octets))


def _raw_octets(key_id: str, material: str) -> bytes:
    try:
        octets = base64.b64decode(material, validate=True)
    except (binascii.Error, ValueError):
        raise KeyringError(
            f"master key {key_id!r} is not base64 (with + and / and padding); {_RIGHT}"
        ) from None
    if len(octets) != KEY_OCTETS:
        raise KeyringError(f"master key {key_id!r} has {len(octets)} octets, not {KEY_OCTETS}; {_RIGHT}")
    return octets


def _passphrase_octets(key_id: str, material: str) -> bytes:
    if len(material) < PASSPHRASE_CHARACTERS_MIN:
        raise KeyringError(
            f"master key {key_id!r}: its passphrase is too short; right is {PASSPHRASE_CHARACTERS_MIN} "
            "characters or more, better six random words"
        )
    try:
        return material.encode()
    except UnicodeEncodeError:
        raise KeyringError(f"master key {key_id!r}: its passphrase is not text; right is UTF-8") from None


def _split_check(key_id: str, value: bytes) -> tuple[bytes, bytes]:
    """Return salt and proof of a check value."""
    salt_octets = value[1] if len(value) > 1 else 0
    right_length = 2 + salt_octets + KEY_OCTETS
    if len(value) != right_length or value[0] != _CHECK_FORMAT or salt_octets not in {0, SALT_OCTETS}:
        raise KeyringError(
            f"the check value of master key {key_id!r} in the database is malformed (pggit.key_check)"
        )
    return value[2 : 2 + salt_octets], value[2 + salt_octets :]


def _named(ids: Collection[str]) -> str:
    names = ", ".join(repr(key_id) for key_id in ids)
    return f"master key {names} is" if len(ids) == 1 else f"master keys {names} are"
