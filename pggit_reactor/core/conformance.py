"""The examination of a receiver: which requests it is sent, what each proves, and what the answers say.

`examine` is a conversation without I/O: it yields a `Case`, is sent what came of its requests, and returns a
`Report` at its end. Who drives it composes the requests (`Case.compose`, with the time and ids of the
moment), sends them one after the other and draws no conclusion.

A receiver that refuses everything refuses all forgeries too, and a refusal then says nothing: forgeries count
only for a form of signature in which the receiver takes a valid request. So the examination first finds out
which families of headers the receiver verifies, each alone, and then tries every forgery in each of them: an
attacker sends the family that is checked worst.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from enum import StrEnum
from typing import Final

import attrs

from pggit_reactor.core.conformance_cases import (
    Case,
    Form,
    Wants,
    body_only_case,
    cases_of,
    closing_cases,
    delivery_case,
    valid_case,
)
from pggit_reactor.core.model import Answer, AttemptFailure

NO_ANSWERS_MAX: Final = 4
"""After so many cases without an answer the receiver is taken for gone."""

Outcome = Answer | AttemptFailure


class Verdict(StrEnum):
    """What a case says about a receiver."""

    PASS = "pass"  # noqa: S105  # no password
    FAIL = "fail"
    ADVICE = "advice"
    """It works and could do better."""
    UNJUDGED = "unjudged"
    """Its answer says nothing."""


@attrs.frozen(kw_only=True)
class Tried:
    """What came of a case."""

    delivery_id: str
    outcomes: tuple[Outcome, ...]
    """One for each request; the last is a failure where no more were sent for it."""


@attrs.frozen(kw_only=True)
class Check:
    """A case and what it says about the receiver."""

    name: str
    form: Form
    sends: str
    wants: Wants
    required: bool
    verdict: Verdict
    got: str
    note: str
    """What to do, or what to look for; empty where there is nothing to say."""
    delivery_id: str


@attrs.frozen(kw_only=True)
class Report:
    """The end of an examination."""

    forms: tuple[Form, ...]
    """Those in which the receiver takes a valid request; empty where it takes none."""
    checks: tuple[Check, ...]
    cut_short: bool = False
    """It stopped answering; the rest was not tried."""

    @property
    def passed(self) -> bool:
        """Whether every required check passed."""
        return not self.cut_short and all(
            check.verdict is Verdict.PASS for check in self.checks if check.required
        )


Conversation = Generator[Case, Tried, Report]


def examine(family: Form | None = None) -> Conversation:
    """Examine a receiver; *family* says what it verifies (`STANDARD`, `PGGIT`, or each of them: `BOTH`).

    None: that is found out. A receiver that does not answer the first request, or `NO_ANSWERS_MAX` cases in
    all, is asked no more.
    """
    delivery = delivery_case()
    tried = yield delivery
    checks = [judge(delivery, tried, takes_valid=True)]
    if not _answered(tried):
        return Report(forms=(), checks=tuple(checks), cut_short=True)
    takes = {Form.BOTH: _accepted(tried)}
    for form in (Form.STANDARD, Form.PGGIT):
        takes[form] = _accepted((yield valid_case(form)))
    body_only = body_only_case()
    tried = yield body_only
    takes[Form.BODY_ONLY] = _accepted(tried)
    forms = _forms(takes, family)
    if forms != (Form.BODY_ONLY,):
        checks.append(judge(body_only, tried, takes_valid=any(takes.values())))
    taken = tuple(form for form in forms if takes[form])
    unanswered = int(not _answered(tried))
    for case in _rest(forms):
        tried = yield case
        checks.append(judge(case, tried, takes_valid=takes[case.form]))
        unanswered += not _answered(tried)
        if unanswered == NO_ANSWERS_MAX:
            return Report(forms=taken, checks=tuple(checks), cut_short=True)
    return Report(forms=taken, checks=tuple(checks))


def judge(case: Case, tried: Tried, *, takes_valid: bool) -> Check:
    """Return what the answers to *case* say; *takes_valid*: the receiver takes valid requests of its form."""
    verdicts = [_verdict(case, outcome, takes_valid=takes_valid) for outcome in tried.outcomes]
    worst = max(verdicts, key=_RANKS.__getitem__)
    outcome = tried.outcomes[verdicts.index(worst)]
    return Check(
        name=case.name,
        form=case.form,
        sends=case.sends,
        wants=case.wants,
        required=case.required,
        verdict=worst,
        got=_got(outcome),
        note=_note(case, outcome, worst, tried.delivery_id),
        delivery_id=tried.delivery_id,
    )


_RANKS: Final[Mapping[Verdict, int]] = {
    Verdict.PASS: 0,
    Verdict.UNJUDGED: 1,
    Verdict.ADVICE: 2,
    Verdict.FAIL: 3,
}
_THROTTLED: Final = 429


def _answered(tried: Tried) -> bool:
    return not isinstance(tried.outcomes[-1], AttemptFailure)


def _accepted(tried: Tried) -> bool:
    return all(map(_is_success, tried.outcomes))


def _is_success(outcome: Outcome) -> bool:
    return isinstance(outcome, Answer) and 200 <= outcome.status <= 299


def _forms(takes: Mapping[Form, bool], family: Form | None) -> tuple[Form, ...]:
    """Return the forms to try forgeries in."""
    if family is Form.BOTH:
        return (Form.STANDARD, Form.PGGIT)
    if family is not None:
        return (family,)
    alone = tuple(form for form in (Form.STANDARD, Form.PGGIT) if takes[form])
    # A receiver may want all six headers at once; one of the old guide takes nothing but its own.
    others = tuple(form for form in (Form.BOTH, Form.BODY_ONLY) if takes[form])
    return alone or others[:1]


def _rest(forms: tuple[Form, ...]) -> Iterator[Case]:
    for form in forms or (Form.BOTH,):
        yield from cases_of(form)
    yield from closing_cases(forms[0] if forms else Form.BOTH)


def _verdict(case: Case, outcome: Outcome, *, takes_valid: bool) -> Verdict:
    bad = Verdict.FAIL if case.required else Verdict.ADVICE
    if isinstance(outcome, AttemptFailure):
        return Verdict.ADVICE if case.may_hang_up else bad
    if outcome.status == _THROTTLED:
        return Verdict.UNJUDGED
    if case.wants is Wants.ACCEPTED or _is_success(outcome):
        return Verdict.PASS if _is_success(outcome) is (case.wants is Wants.ACCEPTED) else bad
    if not 400 <= outcome.status <= 499:
        return bad
    return Verdict.PASS if takes_valid else Verdict.UNJUDGED


def _got(outcome: Outcome) -> str:
    if isinstance(outcome, Answer):
        return str(outcome.status)
    return f"no answer ({outcome.kind})"


def _note(case: Case, outcome: Outcome, verdict: Verdict, delivery_id: str) -> str:
    if verdict is Verdict.PASS:
        seen = f"whether it acted once cannot be seen from here: look for the id {delivery_id} in its records"
        return seen if case.look_for_one else ""
    if verdict is Verdict.UNJUDGED:
        if isinstance(outcome, Answer) and outcome.status == _THROTTLED:
            return "it asks for fewer requests (429); let it take more, and check again"
        return "it takes no valid request of this form, so that its refusal says nothing"
    if isinstance(outcome, AttemptFailure):
        return f"{outcome.detail}; {case.remedy}"
    if case.wants is Wants.REFUSED and outcome.status >= 500:
        return "what is forged or malformed must not break it: answer 401 or 400, never 5xx"
    return case.remedy
