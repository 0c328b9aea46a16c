"""Sends the requests of an examination (core.conformance) to a receiver, over the sender that deliveries use."""

from __future__ import annotations

import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final

from pggit_reactor.core.conformance import Outcome, Report, Tried, examine
from pggit_reactor.core.conformance_cases import Case, Form, Material
from pggit_reactor.core.model import AttemptFailure, FailureKind
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret
from pggit_reactor.core.url_policy import Target
from pggit_reactor.delivery.exchange import Route
from pggit_reactor.delivery.sender import WebhookTransport, user_agent
from pggit_reactor.errors import UrlRefusedError

_STRANGER_OCTETS: Final = 32
_KEY: Final = "receiver check"


async def examine_receiver(
    transport: WebhookTransport,
    target: Target,
    *,
    signing_secrets: Sequence[Secret[str]],
    family: Form | None = None,
    deadline_seconds: float,
    wall_now: Callable[[], float] = time.time,
) -> Report:
    """Examine the receiver at *target*, which has *signing_secrets* (newest first), one request at a time.

    Each request has *deadline_seconds*. `UrlRefusedError` where policy refuses an address of the target.
    Cancelling leaves the receiver with what it was sent so far.
    """
    strangers = _strangers()
    conversation = examine(family)
    case = next(conversation)
    while True:
        material = Material(
            secrets=tuple(signing_secrets),
            strangers=strangers,
            now=int(wall_now()),
            delivery_id=str(uuid.uuid4()),
            other_id=str(uuid.uuid4()),
        )
        outcomes = await _send(transport, target, case, material, deadline_seconds)
        try:
            case = conversation.send(Tried(delivery_id=material.delivery_id, outcomes=outcomes))
        except StopIteration as end:
            report: Report = end.value
            return report


def _strangers() -> tuple[Secret[str], Secret[str]]:
    return (
        Secret(new_secret(secrets.token_bytes(_STRANGER_OCTETS))),
        Secret(new_secret(secrets.token_bytes(_STRANGER_OCTETS))),
    )


async def _send(
    transport: WebhookTransport, target: Target, case: Case, material: Material, deadline_seconds: float
) -> tuple[Outcome, ...]:
    """Send the requests of *case*, up to the first that has no answer."""
    outcomes: list[Outcome] = []
    for request in case.compose(material):
        result = await transport.post(
            route=Route(owner=_KEY, target=target),
            headers=(*request.headers, ("User-Agent", user_agent())),
            body=request.body,
            deadline_seconds=deadline_seconds,
        )
        outcomes.append(result.outcome)
        if isinstance(result.outcome, AttemptFailure):
            if result.outcome.kind is FailureKind.URL_REFUSED:
                raise UrlRefusedError(result.outcome.detail)
            break
    return tuple(outcomes)
