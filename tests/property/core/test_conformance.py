"""The examination against model receivers: a good one passes, and each mistake is found by the case about it."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pggit_reactor.core.conformance import NO_ANSWERS_MAX, Report, Tried, Verdict, examine, judge
from pggit_reactor.core.conformance_cases import (
    Form,
    Material,
    Wants,
    body_only_case,
    cases_of,
    closing_cases,
    delivery_case,
    valid_case,
)
from pggit_reactor.core.model import Answer, AttemptFailure, FailureKind, SignatureScope
from pggit_reactor.core.secret import Secret
from pggit_reactor.core.signing import new_secret, secret_key, sign, verify
from pggit_reactor.errors import VerificationError
from pggit_reactor.testing.verifiers import PGGIT, STANDARD, Flaw, Verifier

NOW = 1_800_000_000
OWN = new_secret(bytes(range(32)))
STRANGERS = (Secret(new_secret(b"\1" * 32)), Secret(new_secret(b"\2" * 32)))
TIMEOUT = AttemptFailure(kind=FailureKind.TIMEOUT, detail="no answer within 5 s")
ALONE = (Form.STANDARD, Form.PGGIT)

secrets_drawn = st.one_of(
    st.binary(min_size=24, max_size=48).map(new_secret),
    st.text(min_size=24, max_size=48).filter(lambda text: not text.startswith("whsec_")),
)
materials = st.builds(
    Material,
    secrets=st.lists(secrets_drawn.map(Secret), min_size=1, max_size=3).map(tuple),
    strangers=st.just(STRANGERS),
    now=st.integers(100_000, 200_000_000_000),
    delivery_id=st.uuids().map(str),
    other_id=st.uuids().map(str),
)


def material(secrets=(OWN,)) -> Material:
    return Material(
        secrets=tuple(map(Secret, secrets)),
        strangers=STRANGERS,
        now=NOW,
        delivery_id=str(uuid.uuid4()),
        other_id=str(uuid.uuid4()),
    )


def play(answer, *, family=None, secrets=(OWN,)) -> Report:
    """Examine what *answer* does with a request."""
    conversation = examine(family)
    case = next(conversation)
    while True:
        made = material(secrets)
        outcomes = tuple(answer(request) for request in case.compose(made))
        try:
            case = conversation.send(Tried(delivery_id=made.delivery_id, outcomes=outcomes))
        except StopIteration as end:
            return end.value


def examined(*flaws: Flaw, families=(STANDARD, PGGIT), keys=(OWN,), family=None) -> Report:
    verifier = Verifier(keys=tuple(map(secret_key, keys)), families=families, flaws=frozenset(flaws))
    return play(
        lambda request: Answer(
            status=verifier.status({n.lower(): v for n, v in request.headers}, request.body, NOW)
        ),
        family=family,
        secrets=keys,
    )


def found(report: Report, verdict: Verdict) -> set[str]:
    return {check.name for check in report.checks if check.verdict is verdict}


# -- what is sent


@given(materials)
def test_valid_requests_are_signed_as_deliveries_are(made):
    secrets = [secret.reveal() for secret in made.secrets]
    for case, scope in ((delivery_case(), SignatureScope.FULL), (body_only_case(), SignatureScope.BODY_ONLY)):
        (request,) = case.compose(made)
        signed = sign(request.body, id=made.delivery_id, timestamp=made.now, secrets=secrets, scope=scope)
        sent = dict(request.headers)

        assert {name: sent[name] for name in signed if name in sent} == {
            name: value for name, value in signed.items() if name in sent
        }
        assert sum(name in sent for name in signed) == (6 if scope is SignatureScope.FULL else 3)


@given(materials, st.sampled_from([Form.STANDARD, Form.PGGIT, Form.BOTH]))
def test_verify_takes_what_a_receiver_should_take_and_refuses_the_rest(made, form):
    secrets = [secret.reveal() for secret in made.secrets]
    for case in (*cases_of(form), *closing_cases(form)):
        for request in case.compose(made):
            try:
                verify(request.body, dict(request.headers), secrets, now=made.now)
            except VerificationError:
                assert case.wants is Wants.REFUSED, case.name
            else:
                assert case.wants is Wants.ACCEPTED, case.name


def test_cases_of_a_form_have_names_of_their_own():
    for form in Form:
        names = [case.name for case in (*cases_of(form), *closing_cases(form))]

        assert len(names) == len(set(names))


@given(materials)
def test_no_repr_shows_a_secret_or_a_signature(made):
    case = valid_case(Form.BOTH)
    shown = repr((made, case, case.compose(made)))

    assert not any(secret.reveal() in shown for secret in made.secrets)
    assert "v1," not in shown


# -- receivers


@given(st.lists(secrets_drawn, min_size=1, max_size=3, unique=True))
def test_a_good_receiver_passes_everything(secrets):
    report = examined(keys=secrets)

    assert report.forms == ALONE
    assert {check.verdict for check in report.checks} == {Verdict.PASS}
    assert report.passed


@pytest.mark.parametrize(
    ("families", "flaws", "forms"),
    [
        ((STANDARD,), (), (Form.STANDARD,)),
        ((PGGIT,), (), (Form.PGGIT,)),
        ((STANDARD, PGGIT), (Flaw.WANTS_ALL_HEADERS,), (Form.BOTH,)),
    ],
)
def test_the_families_that_a_receiver_verifies_are_found_out(families, flaws, forms):
    report = examined(*flaws, families=families)

    assert report.forms == forms
    assert report.passed


MISTAKES = {
    Flaw.TAKES_ANYTHING: {"wrong-secret", "altered-body", "altered-id", "stale", "unsigned", "no-id", "huge-header"},
    Flaw.IGNORES_TIME: {"stale", "ahead"},
    Flaw.IGNORES_FUTURE: {"ahead"},
    Flaw.ONE_SIGNATURE: {"rotation-new-first", "rotation-own-first"},
    Flaw.FIRST_SIGNATURE: {"rotation-new-first"},
    Flaw.BEGINNINGS: {"cut-signature", "malformed-signature"},
    Flaw.ANY_SCHEME: {"other-scheme"},
    Flaw.REWRITES_JSON: {"octets", "not-utf8"},
    Flaw.DECODES_FIRST: {"not-utf8"},
    Flaw.BREAKS_ON_MALFORMED: {"unsigned", "no-id", "no-timestamp", "no-signature", "malformed-timestamp"},
    Flaw.COMPARES_TEXT: {"not-ascii"},
    Flaw.REFUSES_REPEATS: {"resent", "retried"},
}  # fmt: skip
ADVISED = {
    Flaw.WIDE_WINDOW: "window",
    Flaw.NARROW_WINDOW: "clock-skew",
    Flaw.SMALL_BODIES: "largest-body",
    Flaw.ALSO_BODY_ALONE: "body-only",
}


@pytest.mark.parametrize("flaw", MISTAKES)
def test_a_mistake_is_found_by_the_cases_that_are_about_it(flaw):
    report = examined(flaw)

    assert MISTAKES[flaw] <= found(report, Verdict.FAIL)
    assert not report.passed
    if flaw is not Flaw.TAKES_ANYTHING:
        others = {"altered-timestamp", "altered-signature", "valid", "still-there", "delivery"}
        assert not others & found(report, Verdict.FAIL)


@pytest.mark.parametrize("flaw", ADVISED)
def test_what_could_be_better_is_advice_and_no_failure(flaw):
    report = examined(flaw)

    assert ADVISED[flaw] in found(report, Verdict.ADVICE)
    assert report.passed


def test_every_flaw_that_a_model_can_have_is_looked_for():
    others = {Flaw.REFUSES_EVERYTHING, Flaw.SIGNS_BODY_ALONE, Flaw.WANTS_ALL_HEADERS}

    assert {*MISTAKES, *ADVISED, *others} == set(Flaw)


@pytest.mark.parametrize("flaw", MISTAKES)
@pytest.mark.parametrize("careful", [STANDARD, PGGIT])
def test_a_mistake_in_one_family_is_found_beside_a_good_other(flaw, careful):
    good = Verifier(keys=(secret_key(OWN),), families=(careful,))
    careless = PGGIT if careful is STANDARD else STANDARD
    bad = Verifier(keys=(secret_key(OWN),), families=(careless,), flaws=frozenset({flaw}))

    def answer(request):
        headers = {name.lower(): value for name, value in request.headers}
        verifier = good if any(name.startswith(careful.prefix + "s") for name in headers) else bad
        return Answer(status=verifier.status(headers, request.body, NOW))

    report = play(answer)
    form = Form.PGGIT if careless is PGGIT else Form.STANDARD
    failed = {check.name for check in report.checks if check.verdict is Verdict.FAIL and check.form is form}

    if flaw not in {Flaw.REFUSES_REPEATS, Flaw.REWRITES_JSON}:  # tried with both families at once
        assert failed & MISTAKES[flaw]


def test_a_receiver_of_the_old_guide_is_known_by_its_signature_over_the_body():
    report = examined(Flaw.SIGNS_BODY_ALONE, families=(PGGIT,))

    assert report.forms == (Form.BODY_ONLY,)
    assert {"delivery", "altered-id", "altered-timestamp"} <= found(report, Verdict.FAIL)
    assert not {"altered-body", "wrong-secret", "stale", "octets", "still-there"} & found(
        report, Verdict.FAIL
    )
    assert not report.passed


@pytest.mark.parametrize("family", [None, Form.STANDARD, Form.PGGIT, Form.BOTH])
def test_the_refusals_of_a_receiver_that_refuses_everything_say_nothing(family):
    report = examined(Flaw.REFUSES_EVERYTHING, family=family)

    assert report.forms == ()
    assert found(report, Verdict.PASS) == set()
    assert "wrong-secret" in found(report, Verdict.UNJUDGED)
    assert {"delivery", "valid", "octets"} <= found(report, Verdict.FAIL)
    assert not report.passed


@pytest.mark.parametrize(
    ("asked", "has"), [(Form.STANDARD, PGGIT), (Form.PGGIT, STANDARD), (Form.BOTH, PGGIT)]
)
def test_a_family_that_is_asked_for_must_be_verified(asked, has):
    report = examined(families=(has,), family=asked)

    assert "valid" in found(report, Verdict.FAIL)
    assert not report.passed


def test_a_receiver_without_one_of_its_secrets_fails_the_check_of_each():
    other = new_secret(b"\3" * 32)
    verifier = Verifier(keys=(secret_key(OWN),))
    report = play(
        lambda request: Answer(
            status=verifier.status({n.lower(): v for n, v in request.headers}, request.body, NOW)
        ),
        secrets=(OWN, other),
    )

    assert found(report, Verdict.FAIL) == {"each-secret"}


# -- answers


def test_a_receiver_that_does_not_answer_is_asked_once():
    asked = []
    report = play(lambda request: asked.append(request) or TIMEOUT)

    assert len(asked) == 1
    assert report.cut_short
    assert not report.passed
    assert report.checks[0].got == "no answer (timeout)"


def test_a_receiver_that_falls_silent_is_given_up():
    verifier = Verifier(keys=(secret_key(OWN),))

    def answer(request):
        status = verifier.status({n.lower(): v for n, v in request.headers}, request.body, NOW)
        return Answer(status=status) if status < 400 else TIMEOUT

    report = play(answer)

    assert report.cut_short
    assert sum(check.got.startswith("no answer") for check in report.checks) == NO_ANSWERS_MAX


def test_hanging_up_on_a_huge_header_is_no_failure():
    (case,) = (case for case in cases_of(Form.STANDARD) if case.name == "huge-header")
    reset = AttemptFailure(kind=FailureKind.RESET, detail="reset")
    check = judge(case, Tried(delivery_id="x", outcomes=(reset,)), takes_valid=True)

    assert check.verdict is Verdict.ADVICE


def test_a_repeat_that_is_answered_well_is_left_to_people_to_look_at():
    notes = [check for check in examined().checks if check.name in {"resent", "retried"}]

    assert len(notes) == 2
    assert all(check.delivery_id in check.note for check in notes)


EVERY_CASE = [
    case
    for form in Form
    for case in (*cases_of(form), *closing_cases(form), delivery_case(), body_only_case())
]


@given(
    st.sampled_from(EVERY_CASE),
    st.lists(
        st.one_of(st.just(TIMEOUT), st.builds(Answer, status=st.integers(100, 599))), min_size=1, max_size=4
    ),
    st.booleans(),
)
def test_no_set_of_answers_passes_that_has_one_wrong(case, outcomes, takes_valid):
    check = judge(case, Tried(delivery_id="x", outcomes=tuple(outcomes)), takes_valid=takes_valid)
    good = range(200, 300) if case.wants is Wants.ACCEPTED else set(range(400, 500)) - {429}
    all_good = all(isinstance(outcome, Answer) and outcome.status in good for outcome in outcomes)

    if check.verdict is Verdict.PASS:
        assert all_good
        assert takes_valid or case.wants is Wants.ACCEPTED
    elif all_good:
        assert check.verdict is Verdict.UNJUDGED
    if check.verdict is Verdict.FAIL:
        assert case.required
        assert check.note
