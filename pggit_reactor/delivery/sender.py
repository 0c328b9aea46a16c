"""The sender: an `httpx.AsyncBaseTransport` whose data path does without httpx.

`WebhookTransport.post` is what deliveries use: no request or response objects, one deadline, an outcome
instead of exceptions. `handle_async_request` is the same path for any httpx client. Nothing here follows a
redirect, reads a proxy from the environment, keeps a cookie or decompresses a body.
"""

from __future__ import annotations

import operator
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import httpx
import trio

from pggit_reactor import __version__
from pggit_reactor.core.headers import TRACEPARENT, parse_extra_headers
from pggit_reactor.core.model import Answer, AttemptFailure, AttemptResult, FailureKind, Webhook, WebhookId
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import sign
from pggit_reactor.core.url_policy import EgressRules, parse_target
from pggit_reactor.delivery.answers import BODY_OCTETS_MAX, AnswerReader
from pggit_reactor.delivery.connections import ConnectionPool, PoolLimits
from pggit_reactor.delivery.dialer import Dialer
from pggit_reactor.delivery.exchange import Exchange, OnPhase, Route
from pggit_reactor.delivery.failures import DETAIL_CHARS_MAX, AttemptError
from pggit_reactor.delivery.requests import compose_request
from pggit_reactor.delivery.resolver import Resolver, SystemResolver
from pggit_reactor.delivery.tls import MakeContext, TlsContexts, TlsPolicy, client_context
from pggit_reactor.errors import BadHeadersError, ConfigurationError, UrlRefusedError

EXCERPT_OCTETS_MAX: Final = 1024
ROUTES_MAX: Final = 10_000
HTTPX_DEADLINE_SECONDS: Final = 5.0
_SWEEPS_PER_IDLE_LIMIT: Final = 4

_EVENT_TYPE: Final = re.compile(r"[\x21-\x7e]{1,256}")
_SET_BY_US: Final = frozenset(
    {
        "host",
        "content-length",
        "accept-encoding",
        "connection",
        "transfer-encoding",
        "te",
        "upgrade",
        "expect",
    }
)

_Registered = tuple[Secret[str], tuple[str, ...], Secret[str] | None, Secret[str] | None]


class WebhookTransport(httpx.AsyncBaseTransport):
    """Sends requests to judged addresses over connections of its own. Open it with `open_transport`.

    Closing an httpx client that uses it closes what is idle; the transport itself lives as long as its block.
    """

    def __init__(self, *, dialer: Dialer, pool: ConnectionPool, rules: EgressRules) -> None:
        self._dialer = dialer
        self._pool = pool
        self._rules = rules
        self._routes: dict[WebhookId, tuple[_Registered, Route]] = {}

    @property
    def idle_connections(self) -> int:
        """Return how many connections wait for their next request."""
        return self._pool.idle_count

    def route_of(self, webhook: Webhook) -> Route:
        """Return the way to *webhook*, made once for each registration; `UrlRefusedError` where policy refuses its URL.

        Connections of the registration before it are closed, those in use as soon as their request is over.
        """
        registered = (webhook.url, webhook.pins, webhook.ca, webhook.client_certificate)
        known = self._routes.get(webhook.webhook_id)
        if known is not None and all(map(operator.is_, known[0], registered)):
            return known[1]
        target = parse_target(webhook.url.reveal(), self._rules)
        route = Route(owner=webhook.webhook_id, target=target, tls=TlsPolicy.of(webhook))
        if known is not None and known[1].connections != route.connections:
            self._pool.replace(known[1].connections, route.connections)
        if len(self._routes) >= ROUTES_MAX:
            self._routes.clear()
        self._routes[webhook.webhook_id] = (registered, route)
        return route

    async def post(
        self,
        *,
        route: Route,
        headers: Sequence[tuple[str, str]],
        body: bytes,
        deadline_seconds: float,
        on_phase: OnPhase | None = None,
    ) -> AttemptResult:
        """POST *body* by *route* and return what came of it; raises nothing but `Cancelled`.

        *headers* go out as they are, between Host and Accept-Encoding, which are set here, and
        Content-Length. *deadline_seconds* bounds everything from the look-up to the head of the answer; its
        body gets what is left, at most a second.
        *on_phase* is called with the name of each phase of `Phases` and the seconds since the start.
        Cancelling closes the connection.
        """
        try:
            parts = compose_request("POST", route.target, headers, body)
        except AttemptError as error:
            return await not_sent(error.failure)
        exchange = Exchange(
            dialer=self._dialer,
            pool=self._pool,
            route=route,
            parts=parts,
            answer=AnswerReader(keep_octets_max=EXCERPT_OCTETS_MAX),
            on_phase=on_phase,
        )
        await exchange.run(deadline_seconds)
        return AttemptResult(
            outcome=_outcome(exchange),
            elapsed_seconds=exchange.elapsed_seconds,
            phases=exchange.phases,
            address=exchange.address,
            reused=exchange.reused,
            resent=exchange.resent,
        )

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send any request of an httpx client, under the same rules and limits as a delivery.

        The deadline is ``extensions["deadline_seconds"]``, else the largest of the client's timeouts, else
        5 s. An answer whose body is cut or larger than 64 KiB raises `httpx.ReadError`: a client would take
        it for whole.
        """
        body = await request.aread()
        try:
            target = parse_target(str(request.url), self._rules)
            parts = compose_request(request.method, target, _client_headers(request), body)
        except UrlRefusedError as error:
            raise httpx.UnsupportedProtocol(str(error), request=request) from error
        except AttemptError as error:
            raise httpx.LocalProtocolError(error.failure.detail, request=request) from error
        answer = AnswerReader(keep_octets_max=BODY_OCTETS_MAX, head_only=request.method == "HEAD")
        exchange = Exchange(
            dialer=self._dialer,
            pool=self._pool,
            route=Route(owner="httpx", target=target),
            parts=parts,
            answer=answer,
        )
        await exchange.run(_client_deadline(request))
        outcome = _outcome(exchange)
        if isinstance(outcome, AttemptFailure):
            raise _client_error(outcome, request)
        if not answer.body_whole:
            detail = f"the body of the answer was cut, or is larger than {BODY_OCTETS_MAX} octets"
            raise httpx.ReadError(detail, request=request)
        return httpx.Response(
            status_code=outcome.status,
            headers=[field for field in answer.fields if field[0].lower() != b"content-encoding"],
            content=answer.body(),
            request=request,
        )

    async def aclose(self) -> None:
        """Close the connections that are idle."""
        self._pool.close_idle()
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def open_transport(
    rules: EgressRules,
    *,
    resolver: Resolver | None = None,
    make_context: MakeContext = client_context,
    limits: PoolLimits | None = None,
) -> AsyncIterator[WebhookTransport]:
    """Open the sender; at the end of the block its idle connections are closed and none is kept any more.

    *make_context* gives the TLS settings that webhooks without a private authority start from;
    `ConfigurationError` where it would agree on less than TLS 1.2.
    """
    contexts = TlsContexts(make_context, version_min=rules.tls_version_min)
    pool = ConnectionPool(limits or PoolLimits())
    dialer = Dialer(rules=rules, resolver=resolver or SystemResolver(), contexts=contexts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_sweep, pool)
        try:
            yield WebhookTransport(dialer=dialer, pool=pool, rules=rules)
        finally:
            pool.close()
            nursery.cancel_scope.cancel()


async def send_attempt(
    transport: WebhookTransport,
    webhook: Webhook,
    *,
    uid: str,
    body: bytes,
    extra_headers: str | None = None,
    event_type: str | None = None,
    traceparent: str | None = None,
    wall_now: float,
    on_phase: OnPhase | None = None,
) -> AttemptResult:
    """Sign *body* for *webhook* and POST it, once. Raises nothing but `Cancelled`; nothing here is retried.

    *extra_headers* is the row's ``headers`` column as JSON text; a name that the webhook sets itself is the
    webhook's. *wall_now*, in Unix seconds, is the attempt's timestamp on the wire.
    """
    try:
        route, headers = _compose(
            transport, webhook, uid=uid, body=body, extra_headers=extra_headers, wall_now=wall_now
        )
    except AttemptError as error:
        return await not_sent(error.failure)
    if event_type is not None and _EVENT_TYPE.fullmatch(event_type):
        headers.append(("X-pgGit-Event-Type", event_type))
    if traceparent is not None and TRACEPARENT.fullmatch(traceparent):
        headers.append(("traceparent", traceparent))
    return await transport.post(
        route=route,
        headers=headers,
        body=body,
        deadline_seconds=webhook.attempt_timeout_seconds,
        on_phase=on_phase,
    )


async def not_sent(failure: AttemptFailure) -> AttemptResult:
    """Return the result of an attempt that never reached the network."""
    await trio.lowlevel.checkpoint()
    return AttemptResult(outcome=failure, elapsed_seconds=0.0)


def _compose(
    transport: WebhookTransport,
    webhook: Webhook,
    *,
    uid: str,
    body: bytes,
    extra_headers: str | None,
    wall_now: float,
) -> tuple[Route, list[tuple[str, str]]]:
    if len(body) > webhook.max_body_bytes:
        detail = f"the body has {len(body)} octets; allowed: {webhook.max_body_bytes} (max_body_bytes)"
        raise AttemptError(FailureKind.TOO_LARGE, detail)
    try:
        route = transport.route_of(webhook)
        row_headers = parse_extra_headers(extra_headers) if extra_headers else ()
        signature = sign(
            body,
            id=uid,
            timestamp=int(wall_now),
            secrets=[secret.reveal() for secret in webhook.secrets],
            scope=webhook.signature_scope,
        )
    except UrlRefusedError as error:
        raise AttemptError(FailureKind.URL_REFUSED, str(error)) from error
    except BadHeadersError as error:
        raise AttemptError(FailureKind.BAD_HEADERS, str(error)) from error
    except (ConfigurationError, ValueError) as error:
        # Registration refuses such secrets, so this is a fault of ours and never one of the alert.
        detail = f"the webhook's secret cannot sign: {error}"
        raise AttemptError(FailureKind.INTERNAL, detail[:DETAIL_CHARS_MAX]) from error
    headers = [("Content-Type", "application/json"), ("User-Agent", user_agent()), *signature.items()]
    headers += webhook.headers
    if row_headers:
        taken = {name.lower() for name, _ in webhook.headers}
        headers += [(name, value) for name, value in row_headers if name.lower() not in taken]
    return route, headers


def user_agent() -> str:
    """Return what we call ourselves: ``pggit-reactor/VERSION``."""
    return f"pggit-reactor/{__version__}"


async def _sweep(pool: ConnectionPool) -> None:
    """Close connections that nobody came for, also while nobody comes at all."""
    while True:
        await trio.sleep(pool.limits.idle_seconds_max / _SWEEPS_PER_IDLE_LIMIT)
        pool.close_expired()


def _outcome(exchange: Exchange) -> Answer | AttemptFailure:
    """Return the answer where its whole head is here, whatever went wrong afterwards."""
    answer = exchange.answer
    if answer.status is not None:
        return Answer(status=answer.status, retry_after=answer.retry_after, excerpt=answer.excerpt())
    assert exchange.failure is not None, "an exchange ends with an answer or with a failure"
    return exchange.failure


def _client_headers(request: httpx.Request) -> list[tuple[str, str]]:
    """Return the client's own headers, without those that say how this connection works."""
    return [(name, value) for name, value in request.headers.multi_items() if name not in _SET_BY_US]


def _client_deadline(request: httpx.Request) -> float:
    if (deadline := request.extensions.get("deadline_seconds")) is not None:
        return float(deadline)
    timeouts = request.extensions.get("timeout", {}).values()
    return max(
        (float(seconds) for seconds in timeouts if seconds is not None), default=HTTPX_DEADLINE_SECONDS
    )


def _client_error(failure: AttemptFailure, request: httpx.Request) -> httpx.TransportError:
    classes: dict[FailureKind, type[httpx.TransportError]] = {
        FailureKind.TIMEOUT: httpx.ReadTimeout,
        FailureKind.RESET: httpx.ReadError,
        FailureKind.MALFORMED: httpx.RemoteProtocolError,
        FailureKind.URL_REFUSED: httpx.UnsupportedProtocol,
        FailureKind.INTERNAL: httpx.TransportError,
    }
    return classes.get(failure.kind, httpx.ConnectError)(failure.detail, request=request)
