"""The one way from a target to addresses that may be connected to.

Registration, `url check`, `webhook test` and deliveries all come by here, so that none of them can see, or
forget, what another does not.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

import trio

from pggit_reactor.core.url_policy import EgressRules, Target, judge_addresses
from pggit_reactor.delivery.failures import look_up_failed
from pggit_reactor.delivery.resolver import Resolver


async def vet(
    target: Target, rules: EgressRules, resolver: Resolver
) -> tuple[IPv4Address | IPv6Address, ...]:
    """Look the target's name up, now, and return its addresses in their order if policy allows them all.

    Raises `UrlRefusedError`, or `AttemptError` (dns) where the name has no address now.
    """
    if target.literal is not None:
        await trio.lowlevel.checkpoint()
        return judge_addresses(target, (target.literal,), rules)
    try:
        found = await resolver.resolve(target.host, target.port)
    except OSError as error:
        raise look_up_failed(target.host, error) from error
    return judge_addresses(target, found, rules)
