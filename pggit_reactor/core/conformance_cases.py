"""The requests of a receiver's examination, as a table: what each is, and what a receiver should answer.

The signatures are made here once more, and not by `core.signing.sign`, which signs nothing malformed. A test
compares the two.
"""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import attrs

from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import (
    PGGIT_ID,
    PGGIT_SIGNATURE,
    PGGIT_TIMESTAMP,
    STANDARD_ID,
    STANDARD_SIGNATURE,
    STANDARD_TIMESTAMP,
    secret_key,
)

EVENT_TYPE: Final = "pggit_reactor.check"
BODY_BYTES_LARGEST: Final = 1_048_576
"""As large as a webhook's bodies may be by default (max_body_bytes)."""
HUGE_SIGNATURES: Final = 256
NEAR_SECONDS: Final = 240
BEYOND_SECONDS: Final = 400
FAR_SECONDS: Final = 3600


class Form(StrEnum):
    """Which signature headers a request carries."""

    BOTH = "both"
    """As deliveries do."""
    STANDARD = "standard"
    PGGIT = "pggit"
    BODY_ONLY = "body-only"
    """The pgGit headers with a signature over the body alone: of receivers written to the old guide."""


class Wants(StrEnum):
    """What a receiver should answer."""

    ACCEPTED = "2xx"
    REFUSED = "4xx"


@attrs.frozen(kw_only=True)
class Request:
    """A request to send; whoever sends it adds what the connection needs."""

    headers: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    body: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True)
class Material:
    """What the requests of a case are made of."""

    secrets: tuple[Secret[str], ...]
    """Those that the receiver has, newest first; at least one."""
    strangers: tuple[Secret[str], Secret[str]]
    """Two that it does not have."""
    now: int
    """Unix time."""
    delivery_id: str
    other_id: str


@attrs.frozen(kw_only=True)
class Case:
    """Something to try on a receiver."""

    name: str
    form: Form
    sends: str
    """What is sent, in words."""
    wants: Wants
    required: bool
    """If not, another answer is worth advice and no more."""
    remedy: str
    """What is wrong with a receiver that answers otherwise."""
    compose: Callable[[Material], tuple[Request, ...]] = attrs.field(repr=False)
    """Returns the requests, to be sent in order; each has to be answered as wanted."""
    may_hang_up: bool = False
    """To be hung up on is worth advice only."""
    look_for_one: bool = False
    """The receiver is to have acted once on the id, which only its own records show."""


def delivery_case() -> Case:
    """Return the first request: a delivery as it is sent."""
    return _DELIVERY.for_form(Form.BOTH)


def valid_case(form: Form) -> Case:
    """Return the case of a valid request of one form."""
    return _VALID.for_form(form)


def body_only_case() -> Case:
    """Return the case of a signature that covers neither id nor time, for a receiver that wants more."""
    return _BODY_ONLY.for_form(Form.BODY_ONLY)


def cases_of(form: Form) -> tuple[Case, ...]:
    """Return all that is tried in one form; the first is a valid request."""
    table = (_VALID, *_ROTATIONS, *_FORGERIES, *_AGES, *_MALFORMED)
    return tuple(row.for_form(form) for row in table if form not in row.except_in)


def closing_cases(form: Form) -> tuple[Case, ...]:
    """Return what is tried once, at the end, as deliveries are sent or, in `Form.BODY_ONLY`, as it wants."""
    used = form if form is Form.BODY_ONLY else Form.BOTH
    return tuple(row.for_form(used) for row in _CLOSING)


# -- how requests are made


@attrs.frozen(kw_only=True)
class _Draft:
    """Signs for one form, as of one moment."""

    form: Form
    material: Material

    def stamps(self, age_seconds: int = 0) -> dict[str, str]:
        """Return the timestamp headers of *age_seconds* ago, also of forms other than this one."""
        seconds = self.material.now - age_seconds
        iso = datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None).isoformat() + "Z"
        return {STANDARD_TIMESTAMP: str(seconds), PGGIT_TIMESTAMP: iso}

    def signed(
        self,
        body: bytes | None = None,
        *,
        secrets: Sequence[Secret[str]] | None = None,
        stamps: Mapping[str, str] | None = None,
        age_seconds: int = 0,
    ) -> _Signed:
        """Return *body* with the headers of a right signature, unless *secrets* are wrong."""
        body = _body() if body is None else body
        keys = [secret_key(secret.reveal()) for secret in secrets or self.material.secrets]
        stamps = self.stamps(age_seconds) if stamps is None else stamps
        headers: dict[str, str] = {}
        if self.form in {Form.STANDARD, Form.BOTH}:
            macs = self._macs(keys, stamps[STANDARD_TIMESTAMP], body)
            words = ["v1," + base64.b64encode(mac).decode("ascii") for mac in macs]
            headers |= self._family(STANDARD_ID, STANDARD_TIMESTAMP, STANDARD_SIGNATURE, stamps, words)
        if self.form in {Form.PGGIT, Form.BOTH}:
            words = ["sha256=" + mac.hex() for mac in self._macs(keys, stamps[PGGIT_TIMESTAMP], body)]
            headers |= self._family(PGGIT_ID, PGGIT_TIMESTAMP, PGGIT_SIGNATURE, stamps, words)
        if self.form is Form.BODY_ONLY:
            words = ["sha256=" + hmac.digest(keys[-1], body, "sha256").hex()]
            headers |= self._family(PGGIT_ID, PGGIT_TIMESTAMP, PGGIT_SIGNATURE, stamps, words)
        return _Signed(headers=headers, body=body)

    def _macs(self, keys: Sequence[bytes], stamp: str, body: bytes) -> list[bytes]:
        signed = f"{self.material.delivery_id}.{stamp}.".encode() + body
        return [hmac.digest(key, signed, "sha256") for key in keys]

    def _family(
        self, id_name: str, stamp_name: str, signature_name: str, stamps: Mapping[str, str], words: list[str]
    ) -> dict[str, str]:
        return {
            id_name: self.material.delivery_id,
            stamp_name: stamps[stamp_name],
            signature_name: " ".join(words),
        }


_IDS: Final = (STANDARD_ID, PGGIT_ID)
_STAMPS: Final = (STANDARD_TIMESTAMP, PGGIT_TIMESTAMP)
_SIGNATURES: Final = (STANDARD_SIGNATURE, PGGIT_SIGNATURE)


@attrs.frozen(kw_only=True)
class _Signed:
    """A signed request, and what may be made of it afterwards."""

    headers: Mapping[str, str]
    body: bytes

    def edit(self, names: Sequence[str], change: Callable[[str], str]) -> _Signed:
        """Return it with those headers changed that it has."""
        changed = {name: change(self.headers[name]) for name in names if name in self.headers}
        return attrs.evolve(self, headers={**self.headers, **changed})

    def put(self, values: Mapping[str, str]) -> _Signed:
        """Return it with the values of those headers that it has."""
        changed = {name: value for name, value in values.items() if name in self.headers}
        return attrs.evolve(self, headers={**self.headers, **changed})

    def without(self, names: Sequence[str]) -> _Signed:
        """Return it without those headers."""
        kept = {name: value for name, value in self.headers.items() if name not in names}
        return attrs.evolve(self, headers=kept)

    def send(self, body: bytes | None = None) -> Request:
        """Return the request, with *body* in place of the signed one."""
        fields = {"Content-Type": "application/json", **self.headers, "X-pgGit-Event-Type": EVENT_TYPE}
        return Request(headers=tuple(fields.items()), body=self.body if body is None else body)


def _body(**fields: object) -> bytes:
    about = {"type": EVENT_TYPE, "message": "A check by pggit-reactor: nothing has happened."}
    return json.dumps(about | fields).encode()


def _flipped(signatures: str) -> str:
    """Return *signatures* with a character changed in the middle of each; hex and base64 stay what they are."""
    return " ".join(
        f"{word[:-20]}{'1' if word[-20] == '0' else '0'}{word[-19:]}" for word in signatures.split(" ")
    )


def _other_scheme(signatures: str) -> str:
    return signatures.replace("v1,", "v2,").replace("sha256=", "sha512=")


def _no_scheme(signatures: str) -> str:
    return signatures.replace("v1,", "").replace("sha256=", "")


def _not_ascii(text: str) -> str:
    return " ".join(f"\u00fc\u00ff{word}" for word in text.split(" "))


# -- the table


@attrs.frozen(kw_only=True)
class _Row:
    """A case of every form."""

    name: str
    sends: str
    wants: Wants = Wants.REFUSED
    required: bool = True
    remedy: str
    make: Callable[[_Draft], Sequence[Request]]
    may_hang_up: bool = False
    look_for_one: bool = False
    except_in: tuple[Form, ...] = ()

    def for_form(self, form: Form) -> Case:
        return Case(
            name=self.name,
            form=form,
            sends=self.sends,
            wants=self.wants,
            required=self.required,
            remedy=self.remedy,
            compose=lambda material: tuple(self.make(_Draft(form=form, material=material))),
            may_hang_up=self.may_hang_up,
            look_for_one=self.look_for_one,
        )


_DELIVERY: Final = _Row(
    name="delivery",
    sends="a delivery as it is sent, with both families of headers",
    wants=Wants.ACCEPTED,
    remedy="no delivery will get through: compare the secret, and how its key is made of it",
    make=lambda draft: [draft.signed().send()],
)
_VALID: Final = _Row(
    name="valid",
    sends="a valid request",
    wants=Wants.ACCEPTED,
    remedy="it does not verify this family of headers",
    make=lambda draft: [draft.signed().send()],
)
_BODY_ONLY: Final = _Row(
    name="body-only",
    sends="a signature over the body alone, of neither id nor time",
    required=False,
    remedy="it takes a signature that covers neither id nor time, beside better ones; leave that out",
    make=lambda draft: [draft.signed().send()],
)

_ROTATIONS: Final = (
    _Row(
        name="each-secret",
        sends="valid requests, each signed by one of the secrets",
        wants=Wants.ACCEPTED,
        remedy="it does not take every secret that it was said to have",
        make=lambda draft: [draft.signed(secrets=[secret]).send() for secret in draft.material.secrets],
        except_in=(Form.BODY_ONLY,),
    ),
    _Row(
        name="rotation-new-first",
        sends="two signatures, by a secret that it does not have yet and by its own",
        wants=Wants.ACCEPTED,
        remedy="it looks at one signature only, and will refuse deliveries while a secret is changed",
        make=lambda draft: [
            draft.signed(secrets=[draft.material.strangers[0], *draft.material.secrets]).send()
        ],
        except_in=(Form.BODY_ONLY,),
    ),
    _Row(
        name="rotation-own-first",
        sends="two signatures, by its own secret and by one that it has no more",
        wants=Wants.ACCEPTED,
        remedy="it looks at one signature only, and will refuse deliveries while a secret is changed",
        make=lambda draft: [
            draft.signed(secrets=[*draft.material.secrets, draft.material.strangers[0]]).send()
        ],
        except_in=(Form.BODY_ONLY,),
    ),
)

_FORGERIES: Final = (
    _Row(
        name="wrong-secret",
        sends="a request signed by another secret",
        remedy="it does not verify the signature",
        make=lambda draft: [draft.signed(secrets=draft.material.strangers[:1]).send()],
    ),
    _Row(
        name="wrong-secrets",
        sends="two signatures, neither by a secret of its own",
        remedy="it does not verify the signatures",
        make=lambda draft: [draft.signed(secrets=draft.material.strangers).send()],
        except_in=(Form.BODY_ONLY,),
    ),
    _Row(
        name="altered-body",
        sends="a body that was changed after it was signed",
        remedy="its signature does not cover the body as it came",
        make=lambda draft: [draft.signed().send(_body(altered=True)), draft.signed().send(_body() + b" ")],
    ),
    _Row(
        name="altered-id",
        sends="an id that was changed after it was signed",
        remedy="its signature does not cover the id: who records a request can repeat it under any id",
        make=lambda draft: [draft.signed().put(dict.fromkeys(_IDS, draft.material.other_id)).send()],
    ),
    _Row(
        name="altered-timestamp",
        sends="a time that was changed after it was signed",
        remedy="its signature does not cover the time: who records a request can repeat it for ever",
        make=lambda draft: [draft.signed(age_seconds=60).put(draft.stamps()).send()],
    ),
    _Row(
        name="altered-signature",
        sends="a signature with one character changed",
        remedy="it does not compare the whole signature",
        make=lambda draft: [draft.signed().edit(_SIGNATURES, _flipped).send()],
    ),
    _Row(
        name="cut-signature",
        sends="the first half of a signature",
        remedy="it does not compare the whole signature",
        make=lambda draft: [draft.signed().edit(_SIGNATURES, lambda text: text[:32]).send()],
    ),
)

_AGES: Final = (
    _Row(
        name="stale",
        sends=f"a valid signature of {FAR_SECONDS} s ago",
        remedy="it does not check the time: who records a request can repeat it later",
        make=lambda draft: [draft.signed(age_seconds=FAR_SECONDS).send()],
    ),
    _Row(
        name="ahead",
        sends=f"a valid signature of {FAR_SECONDS} s ahead",
        remedy="it does not refuse times in the future",
        make=lambda draft: [draft.signed(age_seconds=-FAR_SECONDS).send()],
    ),
    _Row(
        name="window",
        sends=f"valid signatures of {BEYOND_SECONDS} s ago and ahead",
        required=False,
        remedy="its window of time is wider than 300 s",
        make=lambda draft: [
            draft.signed(age_seconds=age).send() for age in (BEYOND_SECONDS, -BEYOND_SECONDS)
        ],
    ),
    _Row(
        name="clock-skew",
        sends=f"valid signatures of {NEAR_SECONDS} s ago and ahead",
        wants=Wants.ACCEPTED,
        required=False,
        remedy="its window of time is narrower than 300 s: a clock that is wrong will cost deliveries",
        make=lambda draft: [draft.signed(age_seconds=age).send() for age in (NEAR_SECONDS, -NEAR_SECONDS)],
    ),
)

_NO_TIMES: Final = ("", "soon", "NaN", "Infinity", "-1", "1e10", "9" * 40, "2026-13-45T00:00:00Z")
_NO_SIGNATURES: Final = (
    "",
    " ",
    "v1",
    "v1,",
    ",",
    "v1,!",
    "sha256=",
    "sha256=zz",
    "=",
    "v1," + "A" * 44,
    "null",
)

_MALFORMED: Final = (
    _Row(
        name="unsigned",
        sends="no signature headers at all",
        remedy="it takes what nobody signed",
        make=lambda draft: [draft.signed().without((*_IDS, *_STAMPS, *_SIGNATURES)).send()],
    ),
    _Row(
        name="no-id",
        sends="no id",
        remedy="it takes requests without the id that repeats are known by",
        make=lambda draft: [draft.signed().without(_IDS).send()],
    ),
    _Row(
        name="no-timestamp",
        sends="no time",
        remedy="it takes requests without a time",
        make=lambda draft: [draft.signed().without(_STAMPS).send()],
    ),
    _Row(
        name="no-signature",
        sends="an id and a time, and no signature",
        remedy="it takes what nobody signed",
        make=lambda draft: [draft.signed().without(_SIGNATURES).send()],
    ),
    _Row(
        name="malformed-timestamp",
        sends="times that are none, rightly signed",
        remedy="it takes a time that is none",
        make=lambda draft: [draft.signed(stamps=dict.fromkeys(_STAMPS, text)).send() for text in _NO_TIMES],
    ),
    _Row(
        name="malformed-signature",
        sends="signatures that are none",
        remedy="it takes a signature that is none",
        make=lambda draft: [
            draft.signed().put(dict.fromkeys(_SIGNATURES, text)).send() for text in _NO_SIGNATURES
        ],
    ),
    _Row(
        name="other-scheme",
        sends="the right signature under the name of another scheme",
        remedy="it does not look at the scheme (v1, or sha256=) of a signature",
        make=lambda draft: [draft.signed().edit(_SIGNATURES, _other_scheme).send()],
    ),
    _Row(
        name="no-scheme",
        sends="the right signature without the name of its scheme",
        required=False,
        remedy="it does not look at the scheme (v1, or sha256=) of a signature",
        make=lambda draft: [draft.signed().edit(_SIGNATURES, _no_scheme).send()],
    ),
    _Row(
        name="not-ascii",
        sends="an id, a time and a signature that are not ASCII",
        remedy="it takes headers that are not ASCII",
        make=lambda draft: [
            draft.signed().edit(names, _not_ascii).send() for names in (_IDS, _STAMPS, _SIGNATURES)
        ],
    ),
    _Row(
        name="huge-header",
        sends=f"a header of {HUGE_SIGNATURES} signatures, none of them right",
        remedy="answer 400, 401 or 431",
        make=lambda draft: [
            draft.signed()
            .edit(
                _SIGNATURES,
                lambda text: " ".join([_flipped(text).split(" ", maxsplit=1)[0]] * HUGE_SIGNATURES),
            )
            .send()
        ],
        may_hang_up=True,
    ),
    _Row(
        name="not-utf8",
        sends="a body that is not UTF-8, under a wrong signature",
        remedy="it decodes a body that it has not verified",
        make=lambda draft: [draft.signed(b"\xff\xfe\x00{", secrets=draft.material.strangers[:1]).send()],
    ),
)

# As PostgreSQL prints jsonb: no other program writes spaces, fractions and letters just so.
_OCTETS: Final = '{"a": [100, "\u00fc\u2028/"], "b": 1.10}'.encode()

_CLOSING: Final = (
    _Row(
        name="octets",
        sends="JSON that is another text once it was parsed and written again",
        wants=Wants.ACCEPTED,
        remedy="it verifies JSON that it has parsed and written again; verify the octets as they came",
        make=lambda draft: [draft.signed(_OCTETS).send()],
    ),
    _Row(
        name="largest-body",
        sends=f"a body of {BODY_BYTES_LARGEST} octets",
        wants=Wants.ACCEPTED,
        required=False,
        remedy="it does not take the largest body; let it, or give the webhook a max_body_bytes",
        make=lambda draft: [draft.signed(_padded()).send()],
    ),
    _Row(
        name="resent",
        sends="the same request twice, as after a connection that was lost",
        wants=Wants.ACCEPTED,
        remedy="answer a repeat 2xx as well: any other answer is taken for a refusal of the alert",
        make=lambda draft: [draft.signed().send()] * 2,
        look_for_one=True,
    ),
    _Row(
        name="retried",
        sends="the same id twice, signed at two times, as when an answer was lost",
        wants=Wants.ACCEPTED,
        remedy="answer a repeat 2xx as well: any other answer is taken for a refusal of the alert",
        make=lambda draft: [draft.signed(age_seconds=30).send(), draft.signed().send()],
        look_for_one=True,
    ),
    _Row(
        name="still-there",
        sends="a valid delivery after all that",
        wants=Wants.ACCEPTED,
        remedy="something before has broken it",
        make=lambda draft: [draft.signed().send()],
    ),
)


def _padded() -> bytes:
    """Return a body of exactly `BODY_BYTES_LARGEST` octets."""
    return _body(padding="x" * (BODY_BYTES_LARGEST - len(_body(padding=""))))
