"""The state table, over every pair of state and event."""

from contextlib import suppress
from itertools import product

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pggit_reactor.core.model import State
from pggit_reactor.core.states import TRANSITIONS, Event, advance
from pggit_reactor.errors import IllegalTransitionError

CLAIMABLE = [State.PENDING, State.RETRYING]
ATTEMPTED = [Event.ACCEPTED, Event.DEFERRED, Event.GAVE_UP]


@pytest.mark.parametrize(("state", "event"), list(product(State, Event)))
def test_each_pair_has_a_successor_or_an_error_that_names_the_allowed_events(state, event):
    if event in TRANSITIONS[state]:
        assert advance(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransitionError) as caught:
            advance(state, event)
        assert all(allowed in str(caught.value) for allowed in TRANSITIONS[state])


def test_every_state_has_a_line_and_a_way_out():
    assert set(TRANSITIONS) == set(State)
    assert all(TRANSITIONS.values())


@pytest.mark.parametrize(("state", "event"), list(product(CLAIMABLE, ATTEMPTED)))
def test_an_attempt_may_end_in_each_way_from_each_state_that_is_claimed(state, event):
    assert advance(state, event) in State


@pytest.mark.parametrize("state", [State.DELIVERED, State.FAILED])
def test_only_a_replay_leaves_a_settled_state(state):
    assert dict(TRANSITIONS[state]) == {Event.REPLAYED: State.PENDING}


@pytest.mark.parametrize("state", CLAIMABLE)
def test_what_is_in_play_can_be_cancelled_and_needs_no_replay(state):
    assert advance(state, Event.CANCELLED) is State.FAILED
    with pytest.raises(IllegalTransitionError):
        advance(state, Event.REPLAYED)


class DeliveryLife(RuleBasedStateMachine):
    state, accepted = State.PENDING, False

    @rule(event=st.sampled_from(Event))
    def step(self, event):
        with suppress(IllegalTransitionError):
            self.state = advance(self.state, event)
            self.accepted = (self.accepted or event is Event.ACCEPTED) and event is not Event.REPLAYED

    @invariant()
    def an_accepted_delivery_stays_delivered_until_replayed(self):
        assert self.accepted == (self.state is State.DELIVERED)


TestDeliveryLife = DeliveryLife.TestCase
