"""Whether requests came within a rate, judged by the receiver: in every window, not on average."""

from __future__ import annotations

from collections.abc import Iterable

CONNECT_SECONDS: float = 0.25
"""By so much a request may come later than its token was taken: it had to begin, and to connect."""


def worst_window(
    moments: Iterable[float], *, rate_per_s: float, burst: int, slack_seconds: float = CONNECT_SECONDS
) -> float:
    """Return by how many requests the worst of all windows exceeds rate x (w + slack) + burst; at most 0 is right.

    The worst windows begin and end with a request, so these are all that have to be looked at; and of those that end
    with the same one, the worst is known from the one before: the work is linear.
    """
    excess = worst = float("-inf")
    previous = None
    for moment in sorted(moments):
        # A window that begins with this request, or the worst one that ended with the request before, made longer.
        carried = float("-inf") if previous is None else excess - rate_per_s * (moment - previous)
        excess = 1 + max(carried, -rate_per_s * slack_seconds - burst)
        worst = max(worst, excess)
        previous = moment
    return worst


def assert_within_rate(
    moments: Iterable[float], *, rate_per_s: float, burst: int, slack_seconds: float = CONNECT_SECONDS
) -> None:
    """Assert that no window of any length holds more requests than rate x (w + slack) + burst."""
    worst = worst_window(moments, rate_per_s=rate_per_s, burst=burst, slack_seconds=slack_seconds)
    assert worst <= 0, (
        f"a window holds {worst:.2f} requests more than {rate_per_s:g} a second and a burst of {burst}"
    )
