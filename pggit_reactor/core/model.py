"""The values that travel through the house. Frozen, without I/O, without a clock."""

from __future__ import annotations

from enum import StrEnum
from typing import NewType

import attrs

from pggit_reactor.core.secret import Secret
from pggit_reactor.core.status_policy import NO_POLICY, StatusPolicy

DeliveryId = NewType("DeliveryId", int)
WebhookId = NewType("WebhookId", int)
LeaseToken = NewType("LeaseToken", int)


class State(StrEnum):
    """`delivery_status` of a row; the words are the database's (LEGACY 2.1)."""

    PENDING = "pending"
    RETRYING = "retrying"
    DELIVERED = "delivered"
    FAILED = "failed"


class FailedReason(StrEnum):
    """`failed_reason` of a dead row; the words are the database's (DESIGN 5)."""

    PERMANENT = "permanent"
    EXHAUSTED = "exhausted"
    GONE = "gone"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    URL_REFUSED = "url_refused"
    UNKNOWN_WEBHOOK = "unknown_webhook"
    TOO_LARGE = "too_large"
    BAD_HEADERS = "bad_headers"
    TEMPLATE = "template"
    CRASH = "crash"


class FailureKind(StrEnum):
    """Why an attempt has no answer."""

    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    RESET = "reset"
    MALFORMED = "malformed"
    URL_REFUSED = "url_refused"
    BAD_HEADERS = "bad_headers"
    TOO_LARGE = "too_large"
    INTERNAL = "internal"


class WebhookState(StrEnum):
    """`state` of a registered webhook."""

    ACTIVE = "active"
    PAUSED = "paused"
    DISABLED = "disabled"


class SignatureScope(StrEnum):
    """What `X-pgGit-Signature` covers; `BODY_ONLY` lets the timestamp be altered (DESIGN 7)."""

    FULL = "full"
    BODY_ONLY = "body-only"


class SignatureAlgorithm(StrEnum):
    """What a signing secret signs with."""

    HMAC_SHA256 = "hmac-sha256"
    ED25519 = "ed25519"


class Ordering(StrEnum):
    """What of a webhook is sent one after another: nothing, all of it, or what has the same ordering key."""

    NONE = "none"
    WEBHOOK = "webhook"
    KEY = "key"


@attrs.frozen(kw_only=True)
class Answer:
    """What a receiver answered: the whole head arrived and was well formed."""

    status: int
    """0 to 999 as sent; only 100 to 599 have a meaning."""
    retry_after: str | None = None
    """The raw `Retry-After` field, at most 64 characters."""
    excerpt: str = attrs.field(default="", repr=False)
    """At most 1 KiB of the body, for people; undecodable octets replaced, control characters too."""


@attrs.frozen(kw_only=True)
class AttemptFailure:
    """Why there is no answer."""

    kind: FailureKind
    detail: str
    """For people: no path, no secret, no payload. At most 500 characters."""


@attrs.frozen(kw_only=True)
class Phases:
    """Seconds from the attempt's start to the end of each phase; None where it did not happen."""

    resolved: float | None = None
    connected: float | None = None
    secured: float | None = None
    sent: float | None = None
    answered: float | None = None
    """The whole head of the final answer was read."""


@attrs.frozen(kw_only=True)
class AttemptResult:
    """One attempt: its outcome and how long it took."""

    outcome: Answer | AttemptFailure
    elapsed_seconds: float
    phases: Phases = Phases()
    address: str | None = None
    """The address that was connected to, in canonical text."""
    reused: bool = False
    resent: bool = False
    """A reused connection had died; the request was sent once more on a fresh one."""


@attrs.frozen(kw_only=True)
class Webhook:
    """A registered receiver, opened for sending."""

    webhook_id: WebhookId
    name: str
    revision: int
    """Changes with every change of the registration; a claim returns it, so that a stale copy is noticed."""
    state: WebhookState
    url: Secret[str]
    url_origin: str
    """Scheme, host and port: what people and logs may see."""
    secrets: tuple[Secret[str], ...]
    """Newest first; one signature each."""
    secrets_change_in_seconds: float | None = None
    """When, from its loading on, other secrets are the valid ones by the passing of time alone; None: never."""
    concurrency: int = 32
    attempt_timeout_seconds: float = 5.0
    max_attempts: int | None = None
    give_up_after_seconds: float = 72 * 3600.0
    headers: tuple[tuple[str, str], ...] = attrs.field(default=(), repr=False)
    signature_scope: SignatureScope = SignatureScope.FULL
    max_body_bytes: int = 1_048_576
    pins: tuple[str, ...] = ()
    """Keys that the receiver may show (core.pins); none: any key that its certificate vouches for."""
    ca: Secret[str] | None = None
    """PEM: the authorities to trust instead of the system's."""
    client_certificate: Secret[str] | None = None
    """PEM: key, certificate and chain to show the receiver."""
    status_policy: StatusPolicy = NO_POLICY


@attrs.frozen(kw_only=True)
class ClaimedDelivery:
    """A row that this worker holds a lease on, as the claim returned it."""

    delivery_id: DeliveryId
    uid: str
    """Lower-case UUID text: the stable id on the wire."""
    webhook_id: WebhookId
    webhook_revision: int
    lease_token: LeaseToken
    state: State
    body: bytes | None = attrs.field(default=None, repr=False)
    """None where the body was too large to come with the claim: fetch it under the byte budget."""
    body_bytes: int
    retry_count: int
    max_retries: int
    attempt_count: int
    crash_count: int
    age_seconds: float
    """Since created_at, or since it was replayed; what `give_up_after` bounds."""
    waited_seconds: float
    """Since it became ready; what latency is measured from."""
    expired: bool
    is_limited: bool = False
    """It took a token: an attempt that begins much later than its claim would be one too many in some window."""
    is_probe: bool = False
    """The one attempt that a half-open circuit breaker lets through."""
    headers_json: str | None = attrs.field(default=None, repr=False)
    event_type: str | None = None
    traceparent: str | None = None
