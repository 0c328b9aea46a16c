"""Judges a URL as the sender would, before anything is sent: the text, then each address of its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from pggit_reactor.core.url_policy import EgressRules, Target, parse_target
from pggit_reactor.errors import UrlRefusedError

if TYPE_CHECKING:
    from pggit_reactor.delivery.resolver import Resolver


@attrs.frozen(kw_only=True)
class Judgement:
    """A URL that policy does not refuse."""

    target: Target
    addresses: tuple[str, ...]
    """All that were judged; empty where the name did not resolve."""
    unresolved: str | None
    """Why there are no addresses to judge."""


async def judge_url(url: str, rules: EgressRules, *, resolver: Resolver | None = None) -> Judgement:
    """Look the URL's name up and judge all of it; `UrlRefusedError` where policy refuses.

    A name that does not resolve now is not refused here: what it means is for the caller to say.
    """
    from pggit_reactor.delivery.failures import AttemptError
    from pggit_reactor.delivery.resolver import SystemResolver
    from pggit_reactor.delivery.vetting import vet

    target = parse_target(url, rules)
    try:
        judged = await vet(target, rules, resolver or SystemResolver())
    except AttemptError as error:
        return Judgement(target=target, addresses=(), unresolved=error.failure.detail)
    return Judgement(target=target, addresses=tuple(map(str, judged)), unresolved=None)


async def require_good_url(url: str, rules: EgressRules, *, resolver: Resolver | None = None) -> Judgement:
    """As `judge_url`; a name that does not resolve now is refused as well."""
    judgement = await judge_url(url, rules, resolver=resolver)
    if judgement.unresolved is not None:
        raise UrlRefusedError(judgement.unresolved)
    return judgement
