"""The registry of webhooks: add, change, show, remove; each change and its audit row in one transaction.

What is sealed (URL, headers, signing secrets) is opened only where it must be: a change of a limit needs no
key. Callers have judged URLs and checked headers; constraints of the database judge the rest once more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import Any, Final

import attrs

from pggit_reactor.core.breaker import RECOVERY_SECONDS
from pggit_reactor.core.headers import check_extra_headers
from pggit_reactor.core.model import Ordering, SignatureAlgorithm, SignatureScope, WebhookId
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing_keys import algorithm_of, public_key_of
from pggit_reactor.db.connect import TrioConnection
from pggit_reactor.db.statements import statements
from pggit_reactor.db.webhooks import (
    ca_place,
    client_certificate_place,
    headers_place,
    secret_place,
    url_place,
)
from pggit_reactor.errors import ConfigurationError, DatabaseError, NotFoundError
from pggit_reactor.security.certificates import RegisteredCertificates
from pggit_reactor.security.sealing import Place, Sealer

WAITING_ROWS_MAX: Final = 10_000
"""Waiting deliveries are counted up to here."""

_UNIQUE_VIOLATION: Final = "23505"
_SQL = statements("registry")


@attrs.frozen(kw_only=True)
class By:
    """Who changes something, for the audit log: a user's name and the host that he sits at."""

    name: str
    host: str
    request_id: str | None = None
    """A UUID that joins the audit rows of one call."""


@attrs.frozen(kw_only=True)
class Policy:
    """What may be set of a webhook and is no secret. None: the default."""

    rate_per_s: float | None = None
    burst: int | None = None
    concurrency: int | None = None
    attempt_timeout: float | None = None
    """Seconds, as `give_up_after`."""
    max_attempts: int | None = None
    give_up_after: float | None = None
    max_body_bytes: int | None = None
    signature_scope: SignatureScope | None = None
    pins: list[str] | None = attrs.field(default=None, converter=attrs.converters.optional(list))
    """As `core.pins` reads them; a list, as psycopg gives and takes an array."""
    rotate_every: float | None = None
    """Seconds between new signing secrets."""
    weight: int | None = None
    status_policy: Any = None
    """JSON, as `core.status_policy` reads it; whatever somebody wrote there stays until it is set."""
    ordering: Ordering | None = None


@attrs.frozen(kw_only=True)
class Change:
    """What is to become of a webhook; what is not named stays."""

    name: str | None = None
    url: Secret[str] | None = None
    url_origin: str | None = None
    """Given with a url: what people may see of it."""
    policy: Mapping[str, object] = MappingProxyType({})
    """Fields of `Policy`; None puts the default back."""
    headers: Mapping[str, Secret[str] | None] = MappingProxyType({})
    """By name; None takes the header away."""
    certificates: Mapping[str, RegisteredCertificates | None] = MappingProxyType({})
    """By name, ``ca`` or ``client_certificate``; None takes them away."""
    labels: Mapping[str, str | None] = MappingProxyType({})
    replaces_labels: bool = False
    """Labels that are not named go."""

    @property
    def seals(self) -> bool:
        """Whether a key is needed for it."""
        return self.url is not None or bool(self.headers) or any(self.certificates.values())


@attrs.frozen(kw_only=True)
class SecretRecord:
    """A version of a signing secret, without the secret."""

    version: int
    not_before: str
    expires_at: str | None
    created_at: str
    created_by: str | None
    algorithm: str
    public_key: str | None
    """What receivers verify with, where it is an Ed25519 key."""


@attrs.frozen(kw_only=True)
class WebhookRecord:
    """What people may see of a webhook."""

    webhook_id: int
    name: str
    url_origin: str
    state: str
    state_reason: str | None
    state_since: datetime
    state_by: str | None
    paused_until: datetime | None
    """When a pause ends by itself; None where there is none, or it ends when somebody ends it."""
    rate_per_s: float
    burst: int
    concurrency: int
    attempt_timeout_seconds: float | None
    max_attempts: int | None
    give_up_after_seconds: float
    max_body_bytes: int | None
    signature_scope: str
    rotate_every_seconds: float | None
    next_rotation: datetime | None
    weight: int
    """Its share, where workers are short of room."""
    status_policy: Any
    """Its own table of statuses, as stored; None where there is none."""
    ordering: str
    has_headers: bool
    pins: tuple[str, ...]
    ca_fingerprints: tuple[str, ...]
    """SHA-256 of each certificate, as those below; the first of a client certificate is its own."""
    ca_expires_at: datetime | None
    client_certificate_fingerprints: tuple[str, ...]
    client_certificate_expires_at: datetime | None
    labels: Mapping[str, str]
    created_at: datetime
    updated_at: datetime
    secrets: tuple[SecretRecord, ...]
    learned_concurrency: int | None
    """How many attempts at once a worker found it able to bear, of late; None: its concurrency."""
    breaker: str
    """Of its circuit breaker: a word of `core.breaker.Phase`."""
    breaker_until: datetime | None
    """Open until then, half-open after that."""
    retry_after_until: datetime | None
    """The receiver asked that nothing be sent before."""
    health_status: str | None
    attempts: int
    successes: int


@attrs.frozen(kw_only=True)
class Revealed:
    """What is sealed of a webhook, opened."""

    url: Secret[str]
    headers: Mapping[str, Secret[str]]
    secrets: Mapping[int, Secret[str]]
    """By version, the newest first."""


async def add(
    connection: TrioConnection,
    sealer: Sealer,
    change: Change,
    *,
    secret: Secret[str],
    webhook_id: int | None = None,
    by: By,
) -> WebhookId:
    """Register a webhook and its first signing secret; return its id.

    An explicit *webhook_id* adopts the deliveries that wait for it; without one the id is new to every table.
    `ConfigurationError` where id or name is taken.
    """
    assert change.url is not None
    async with connection.transaction():
        new_id = await _next_id(connection) if webhook_id is None else webhook_id
        state = await _changed(_State(sealed_url=b"", url_origin=""), change, new_id, sealer)
        state = state if state.name else attrs.evolve(state, name=f"webhook-{new_id}")
        try:
            await connection.execute(_SQL["add"], {**state.bound(), "webhook_id": new_id, "by": by.name})
        except DatabaseError as error:
            raise _taken(error, new_id, state.name) from error
        algorithm = await add_secret(connection, sealer, WebhookId(new_id), 1, secret, by=by)
        seen = {name: value for name, value in state.seen().items() if value not in (None, [], {})}
        first = {"version": 1, "algorithm": algorithm}
        await audit(connection, "webhook_added", webhook_id=new_id, by=by, details=seen)
        await audit(connection, "secret_added", webhook_id=new_id, by=by, details=first)
    return WebhookId(new_id)


async def add_secret(
    connection: TrioConnection,
    sealer: Sealer,
    webhook_id: WebhookId,
    version: int,
    secret: Secret[str],
    *,
    by: By,
) -> SignatureAlgorithm:
    """Write a version of a webhook's signing secret; return what it signs with."""
    place = secret_place(webhook_id, version)
    algorithm = algorithm_of(secret.reveal())
    bound = {
        "webhook_id": webhook_id,
        "version": version,
        "sealed_secret": await sealer.seal_async(secret.reveal().encode(), place=place),
        "algorithm": algorithm,
        "public_key": public_key_of(secret.reveal()),
        "by": by.name,
    }
    await connection.execute(_SQL["add_secret"], bound)
    return algorithm


async def change_webhook(
    connection: TrioConnection, sealer: Sealer | None, which: int | str, change: Change, *, by: By
) -> WebhookId:
    """Change a webhook, named by id or name; return its id. The audit row tells old and new, no secret.

    *sealer* may be None where `Change.seals` says so. `NotFoundError`, `ConfigurationError` for a taken name.
    """
    assert sealer is not None or not change.seals
    async with connection.transaction():
        webhook_id, old = await _locked(connection, which)
        old = attrs.evolve(
            old, headers=await _open_headers(old, webhook_id, sealer) if change.headers else {}
        )
        new = await _changed(old, change, webhook_id, sealer)
        try:
            await connection.execute(_SQL["change"], {**new.bound(), "webhook_id": webhook_id})
        except DatabaseError as error:
            raise _taken(error, webhook_id, new.name) from error
        details = _difference(old.seen(), new.seen())
        if change.url is not None:
            details.setdefault("url", "changed")  # also where the origin is the same
        if change.headers:
            details["headers_set"] = sorted(change.headers)
        await audit(connection, "webhook_changed", webhook_id=webhook_id, by=by, details=details)
    return webhook_id


async def remove(connection: TrioConnection, which: int | str, *, by: By) -> WebhookRecord:
    """Remove a webhook and its secrets; return what it was. Its deliveries wait for the id, as unknown."""
    async with connection.transaction():
        await _locked(connection, which)
        record = await read_record(connection, which)
        await connection.execute(_SQL["remove"], {"webhook_id": record.webhook_id})
        details = {"name": record.name, "url_origin": record.url_origin}
        await audit(connection, "webhook_removed", webhook_id=record.webhook_id, by=by, details=details)
    return record


async def read_records(connection: TrioConnection) -> tuple[WebhookRecord, ...]:
    """Return all webhooks, by id."""
    return await _records(connection, {"all": True, "webhook_id": None, "name": None})


async def read_record(connection: TrioConnection, which: int | str) -> WebhookRecord:
    """Return one webhook, by id or name; `NotFoundError`."""
    found = await _records(connection, {"all": False, **_named(which)})
    if not found:
        raise _not_found(which)
    return found[0]


async def is_registered(connection: TrioConnection, webhook_id: int) -> bool:
    """Tell whether anything is registered under *webhook_id*."""
    return (
        await (await connection.execute(_SQL["registered"], {"webhook_id": webhook_id})).fetchone()
        is not None
    )


async def reveal(connection: TrioConnection, sealer: Sealer, which: int | str, *, by: By) -> Revealed:
    """Open what is sealed of a webhook, and audit that it was; `SealError` where it does not open."""
    async with connection.transaction():
        webhook_id, state = await _locked(connection, which)
        url = await sealer.open_async(state.sealed_url, place=url_place(webhook_id))
        headers = await _open_headers(state, webhook_id, sealer)
        cursor = await connection.execute(_SQL["sealed_secrets"], {"webhook_id": webhook_id})
        secrets = {
            version: Secret(
                (await sealer.open_async(sealed, place=secret_place(webhook_id, version))).decode()
            )
            for version, sealed in await cursor.fetchall()
        }
        await audit(connection, "url_decrypted", webhook_id=webhook_id, by=by)
        await audit(
            connection, "secret_revealed", webhook_id=webhook_id, by=by, details={"versions": [*secrets]}
        )
    return Revealed(url=Secret(url.decode()), headers=headers, secrets=secrets)


async def count_waiting(connection: TrioConnection, webhook_id: int) -> int:
    """Return how many deliveries wait for *webhook_id*, at most `WAITING_ROWS_MAX`."""
    bound = {"webhook_id": webhook_id, "rows_max": WAITING_ROWS_MAX}
    row = await (await connection.execute(_SQL["waiting"], bound)).fetchone()
    assert row is not None
    return int(row[0])


async def audit(
    connection: TrioConnection,
    operation: str,
    *,
    by: By,
    webhook_id: int | None = None,
    details: Mapping[str, object] = MappingProxyType({}),
    status_code: int | None = None,
    error_message: str | None = None,
    request_id: str | None = None,
) -> None:
    """Write an audit row for something that a person did. *details* hold no secret."""
    await connection.execute(
        _SQL["audit"],
        {
            "webhook_id": webhook_id,
            "operation": operation,
            "status_code": status_code,
            "error_message": error_message,
            "by": by.name,
            "request_id": request_id or by.request_id,
            "details": json.dumps({**details, "host": by.host}),
        },
    )


# ---- one webhook, as it is written ------------------------------------------------------------------------


@attrs.frozen(kw_only=True)
class _Certificates:
    """The columns that hold private authorities, or a client certificate."""

    sealed: bytes | None = attrs.field(default=None, repr=False)
    fingerprints: Sequence[str] | None = None
    expires_at: datetime | None = None


@attrs.frozen(kw_only=True)
class _State:
    """The changeable columns of a row; *headers* only where they were opened."""

    name: str = ""
    sealed_url: bytes = attrs.field(repr=False)
    url_origin: str
    policy: Policy = Policy()
    sealed_headers: bytes | None = attrs.field(default=None, repr=False)
    headers: Mapping[str, Secret[str]] = MappingProxyType({})
    ca: _Certificates = _Certificates()
    client_certificate: _Certificates = _Certificates()
    labels: Mapping[str, str] = MappingProxyType({})

    def bound(self) -> dict[str, object]:
        """Return the parameters of the statements `add` and `change`."""
        return {
            "name": self.name,
            "sealed_url": self.sealed_url,
            "url_origin": self.url_origin,
            **attrs.asdict(self.policy),
            "status_policy": _json(self.policy.status_policy),
            "sealed_headers": self.sealed_headers,
            "sealed_ca": self.ca.sealed,
            "ca_fingerprints": self.ca.fingerprints,
            "ca_expires_at": self.ca.expires_at,
            "sealed_client_certificate": self.client_certificate.sealed,
            "client_certificate_fingerprints": self.client_certificate.fingerprints,
            "client_certificate_expires_at": self.client_certificate.expires_at,
            "labels": json.dumps(dict(self.labels)),
        }

    def seen(self) -> dict[str, object]:
        """Return what the audit log may tell."""
        return {
            "name": self.name,
            "url_origin": self.url_origin,
            **attrs.asdict(self.policy),
            "headers": sorted(self.headers),
            "ca": self.ca.fingerprints,
            "client_certificate": self.client_certificate.fingerprints,
            "labels": dict(self.labels),
        }


async def _changed(state: _State, change: Change, webhook_id: int, sealer: Sealer | None) -> _State:
    """Return *state* after *change*, sealed anew where that is needed."""
    if change.url is not None:
        assert sealer is not None
        assert change.url_origin is not None
        sealed = await sealer.seal_async(change.url.reveal().encode(), place=url_place(webhook_id))
        state = attrs.evolve(state, sealed_url=sealed, url_origin=change.url_origin)
    if change.headers:
        assert sealer is not None
        headers = _merged(state.headers, change.headers)
        plain = dict(check_extra_headers({name: value.reveal() for name, value in headers.items()}))
        sealed_headers = (
            await sealer.seal_async(json.dumps(plain).encode(), place=headers_place(webhook_id))
            if plain
            else None
        )
        state = attrs.evolve(state, headers=headers, sealed_headers=sealed_headers)
    for name, certificates in change.certificates.items():
        sealed_certificates = await _sealed(certificates, _PLACES[name](webhook_id), sealer)
        state = attrs.evolve(state, **{name: sealed_certificates})  # type: ignore[arg-type]  # the names are fields
    base: Mapping[str, str] = {} if change.replaces_labels else state.labels
    return attrs.evolve(
        state,
        name=change.name or state.name,
        policy=attrs.evolve(state.policy, **change.policy),  # type: ignore[arg-type]  # fields of Policy, typed by the caller
        labels={name: value for name, value in {**base, **change.labels}.items() if value is not None},
    )


_PLACES: Final = MappingProxyType({"ca": ca_place, "client_certificate": client_certificate_place})


async def _sealed(
    certificates: RegisteredCertificates | None, place: Place, sealer: Sealer | None
) -> _Certificates:
    if certificates is None:
        return _Certificates()
    assert sealer is not None
    return _Certificates(
        sealed=await sealer.seal_async(certificates.pem.reveal().encode(), place=place),
        fingerprints=list(certificates.fingerprints),
        expires_at=certificates.expires_at,
    )


def _json(value: object) -> str | None:
    return None if value is None else json.dumps(value)


def _merged(
    old: Mapping[str, Secret[str]], change: Mapping[str, Secret[str] | None]
) -> dict[str, Secret[str]]:
    """Return the headers after *change*; names are compared without case."""
    touched = {name.lower() for name in change}
    kept = {name: value for name, value in old.items() if name.lower() not in touched}
    return kept | {name: value for name, value in change.items() if value is not None}


async def locked_webhook(
    connection: TrioConnection, which: int | str
) -> tuple[WebhookId, SignatureScope | None]:
    """Lock a webhook until the transaction ends; return its id and scope. `NotFoundError`."""
    webhook_id, state = await _locked(connection, which)
    return webhook_id, state.policy.signature_scope


async def _locked(connection: TrioConnection, which: int | str) -> tuple[WebhookId, _State]:
    cursor = await connection.execute(_SQL["find"], _named(which))
    rows = await cursor.fetchall()
    if not rows:
        raise _not_found(which)
    (row,) = rows
    return WebhookId(row[0]), _State(
        name=row[1],
        sealed_url=bytes(row[2]),
        url_origin=row[3],
        policy=Policy(**dict(zip(_POLICY_FIELDS, row[12:], strict=True))),
        ca=_read_certificates(*row[6:9]),
        client_certificate=_read_certificates(*row[9:12]),
        sealed_headers=None if row[4] is None else bytes(row[4]),
        labels=row[5],
    )


def _read_certificates(
    sealed: bytes | None, fingerprints: Sequence[str] | None, expires_at: datetime | None
) -> _Certificates:
    return _Certificates(
        sealed=None if sealed is None else bytes(sealed), fingerprints=fingerprints, expires_at=expires_at
    )


_POLICY_FIELDS: Final = tuple(field.name for field in attrs.fields(Policy))


async def _open_headers(state: _State, webhook_id: int, sealer: Sealer | None) -> dict[str, Secret[str]]:
    if state.sealed_headers is None:
        return {}
    assert sealer is not None
    text = await sealer.open_async(state.sealed_headers, place=headers_place(webhook_id))
    return {name: Secret(value) for name, value in json.loads(text).items()}


async def _next_id(connection: TrioConnection) -> int:
    row = await (await connection.execute(_SQL["next_id"])).fetchone()
    assert row is not None
    return int(row[0])


async def _records(connection: TrioConnection, bound: Mapping[str, object]) -> tuple[WebhookRecord, ...]:
    cursor = await connection.execute(_SQL["records"], {**bound, "recovery_seconds": RECOVERY_SECONDS})
    names = [column.name for column in cursor.description or ()]
    return tuple(_record(dict(zip(names, row, strict=True))) for row in await cursor.fetchall())


def _record(row: dict[str, Any]) -> WebhookRecord:
    secrets = tuple(SecretRecord(**secret) for secret in row.pop("secrets"))
    row |= {name: tuple(row[name]) for name in _LISTS}
    return WebhookRecord(**row, secrets=secrets)


_LISTS: Final = ("pins", "ca_fingerprints", "client_certificate_fingerprints")


def _named(which: int | str) -> dict[str, object]:
    is_id = isinstance(which, int)
    return {"webhook_id": which if is_id else None, "name": None if is_id else which}


def _not_found(which: int | str) -> NotFoundError:
    what = f"has the id {which}" if isinstance(which, int) else f"is named {which!r}"
    return NotFoundError(f"no webhook {what}; `pggit-reactor webhook list` shows all")


def _taken(error: DatabaseError, webhook_id: int, name: str) -> Exception:
    """Return what a refused INSERT or UPDATE means to who chose the name or id."""
    if error.sqlstate != _UNIQUE_VIOLATION:
        return error
    if "webhook_name_key" in str(error):
        return ConfigurationError(f"there is a webhook named {name!r}; names are unique: choose another")
    return ConfigurationError(f"there is a webhook with the id {webhook_id}; `webhook set` changes it")


def _difference(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, object]:
    return {
        name: {"from": old[name], "to": new[name]} for name in new if name in old and old[name] != new[name]
    }
