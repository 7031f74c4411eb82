"""Replicas: where they are put, when one is given up for another, and what of them is charged."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from saucer.publishing import lifecycle
from saucer.publishing.domain import (
    Deployment,
    DeploymentState,
    EndReason,
    Version,
)
from saucer.publishing.instances import LEAVE_ATTEMPTS, Instance, InstanceState, Plan, plan
from saucer.publishing.lifecycle import FOLLOW_LIMIT, LOAD_ATTEMPTS, PROBE_GAP_LIMIT
from tests.unit.publishing.examples import NOW, PARITY, active, at, attended, beside, count, deploying

SECOND = timedelta(seconds=1)
DISAGREEMENT = replace(PARITY, ok=False, paired=1)


def held(text: str) -> list[Instance]:
    """`a b! c? d??`: on a Triton each, b LOADING, c LOST, d so often that it is left; the later the younger."""
    states = {"": InstanceState.SERVING, "!": InstanceState.LOADING}
    return [
        Instance(
            1,
            item[0],
            states.get(item[1:], InstanceState.LOST),
            NOW + number * SECOND,
            attempts=LEAVE_ATTEMPTS if item[1:] == "??" else 0,
        )
        for number, item in enumerate(text.split())
    ]


@pytest.mark.parametrize(
    ("present", "replicas", "leaving", "room", "added", "given_up"),
    [
        ("", 1, "", {}, "", ""),
        ("", 1, "", {"a": 0}, "", ""),
        ("", 1, "", {"a": 1, "b": 2, "c": 2}, "b", ""),
        ("", 2, "", {"a": 1, "b": 3, "c": 2}, "bc", ""),
        ("", 3, "", {"a": 1, "b": 3}, "ba", ""),
        ("a", 2, "", {"a": 9, "b": 1}, "b", ""),
        ("a?", 1, "", {"b": 1}, "", ""),
        # One that is left goes once another serves.
        ("a", 1, "a", {}, "", ""),
        ("a", 1, "a", {"b": 1}, "b", ""),
        ("a b!", 1, "a", {"c": 1}, "", ""),
        ("a b", 1, "a", {"c": 1}, "", "a"),
        ("a? b", 1, "a", {}, "", "a"),
        # One for one, and first what does not serve.
        ("a b", 2, "ab", {"c": 1}, "c", ""),
        ("a b c!", 2, "ab", {}, "", ""),
        ("a b c", 2, "ab", {}, "", "b"),
        ("a? b c", 2, "ab", {}, "", "a"),
        ("a b c", 2, "a", {}, "", "a"),
        # Back before it was replaced: the younger is too many, and rather one that does not serve.
        ("a b", 1, "", {}, "", "b"),
        ("a? b", 1, "", {}, "", "a"),
        ("a b!", 1, "", {}, "", "b"),
        # What does not load there is tried elsewhere, and given up once as many serve as are wanted.
        ("a??", 1, "", {}, "", ""),
        ("a??", 1, "", {"b": 1}, "b", ""),
        ("a?? b!", 1, "", {"c": 1}, "", ""),
        ("a?? b", 1, "", {"c": 1}, "", "a"),
        ("a b??", 2, "", {"c": 1}, "c", ""),
        ("a b?? c", 2, "", {"d": 1}, "", "b"),
        ("a b?? c!", 2, "", {"d": 1}, "", ""),
        # Back before it was replaced.
        ("a b!", 1, "", {"c": 1}, "", "b"),
        # If not there either, it is not tried everywhere, nor to and fro.
        ("a?? b??", 1, "", {"c": 1}, "", ""),
        ("a?? b??", 2, "", {"c": 1, "d": 1}, "cd", ""),
        # Another one is drained.
        ("a b??", 1, "a", {"c": 1}, "c", ""),
        ("a b?? c", 1, "a", {}, "", "ab"),
        ("a??", 1, "a", {"b": 1}, "b", ""),
    ],
)
def test_a_replica_goes_where_most_is_free_and_is_given_up_once_another_serves_in_its_place(
    present: str, replicas: int, leaving: str, room: Mapping[str, int], added: str, given_up: str
) -> None:
    made = plan(held(present), replicas, leaving, room)
    assert made.added == tuple(added)
    assert tuple(item.triton_id for item in made.given_up) == tuple(given_up)


def test_a_triton_that_everything_leaves_comes_last_though_it_has_the_most_room() -> None:
    room = {"a": 8, "b": 7, "c": 1, "d": 2}
    assert plan([], 4, "", room, refusing={"a": 2, "b": 1}).added == ("d", "c", "b", "a")
    assert plan(held("a??"), 1, "", room, refusing={"a": 2, "b": 1}).added == ("d",)


def test_a_triton_whose_repository_fails_comes_last_and_what_leaves_one_is_tried_at_no_other() -> None:
    room = {"a": 8, "b": 7, "c": 1}
    assert plan([], 3, "", room, refusing={"c": 9}, failing="ab").added == ("c", "a", "b")
    assert plan([], 1, "", {"a": 8}, failing="a").added == ("a",), "better there than nowhere"
    assert plan(held("a!"), 1, "a", room, failing="ab").added == ("c",)
    assert plan(held("a!"), 1, "a", {"b": 7}, failing="ab") == Plan()
    # What serves there, or is about to elsewhere, needs nothing else.
    assert plan(held("a"), 1, "", room, failing="ab") == Plan()
    assert plan(held("a! c!"), 1, "a", room, failing="ab") == Plan()
    (loading, _) = there = held("a! c")
    assert plan(there, 1, "a", room, failing="ab") == Plan(given_up=(loading,))


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.sampled_from(InstanceState), st.integers(0, 2 * LEAVE_ATTEMPTS)),
        unique_by=lambda item: item[0],
    ),
    st.integers(1, 4),
    st.sets(st.sampled_from("abcdef")),
    st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 2)),
)
def test_no_plan_lets_fewer_serve_than_are_wanted_nor_two_share_a_triton(
    states: list[tuple[str, InstanceState, int]], replicas: int, leaving: Collection[str], room: Mapping[str, int]
) -> None:
    # What serves has not failed since.
    present = [
        Instance(1, key, state, NOW, attempts=0 if state is InstanceState.SERVING else attempts)
        for key, state, attempts in states
    ]
    room = {key: free for key, free in room.items() if key not in leaving}
    made = plan(present, replicas, leaving, room)
    left = [item for item in present if item not in made.given_up]
    places = [*(item.triton_id for item in left), *made.added]
    assert len(places) == len(set(places))
    assert all(room[key] > 0 for key in made.added)
    served, serves = (sum(item.serving for item in some) for some in (present, left))
    assert serves >= min(served, replicas)
    assert len(left) >= min(len(present), replicas)
    stuck = [item.triton_id for item in left if item.stuck]
    staying = [key for key in places if key not in leaving and key not in stuck]
    assert len(staying) <= max(replicas, len(present))
    if len(staying) < replicas and len(stuck) <= replicas:
        assert not {key for key in room if room[key] > 0} - set(places), "all the room is used"


def test_of_two_replicas_one_is_enough_to_be_active_and_is_charged_by_half() -> None:
    deployment = deploying("a", "b")
    deployment = lifecycle.activate(deployment, at(deployment, "a"), PARITY, "p", NOW)
    assert deployment.state is DeploymentState.ACTIVE
    assert any("1 of 2 replicas serve" in warning for warning in deployment.warnings)
    deployment = count(deployment, NOW + 10 * SECOND, "a")
    assert deployment.charged_ms == 5_000
    deployment = lifecycle.activate(deployment, at(deployment, "b"), PARITY, "p", NOW + 10 * SECOND)
    assert not any("replicas serve" in warning for warning in deployment.warnings)
    deployment = count(deployment, NOW + 14 * SECOND, "a", "b")
    assert deployment.charged_ms == 9_000
    deployment = lifecycle.lose(deployment, at(deployment, "a"), "it does not answer", NOW + 15 * SECOND)
    assert (deployment.state, deployment.error_message) == (DeploymentState.ACTIVE, "")
    deployment = count(deployment, NOW + 16 * SECOND, "b")
    assert deployment.charged_ms == 10_000
    deployment = lifecycle.lose(deployment, at(deployment, "b"), "nor does it", NOW + 17 * SECOND)
    assert deployment.state is DeploymentState.DEGRADED
    deployment = lifecycle.recover(deployment, at(deployment, "a"), NOW + 20 * SECOND)
    assert (deployment.state, deployment.charged_ms) == (DeploymentState.ACTIVE, 10_000)


def test_the_max_duration_is_of_the_counter_and_so_lasts_twice_as_long_where_half_serves() -> None:
    deployment = active("a", "b", max_duration_ms=10_000)
    assert deployment.stop_at == NOW + 10 * SECOND
    deployment = lifecycle.lose(deployment, at(deployment, "b"), "dead", NOW)
    assert deployment.stop_at == NOW + 20 * SECOND
    deployment = count(deployment, NOW + 15 * SECOND, "a")
    assert deployment.stop_at == NOW + 20 * SECOND
    stopped = count(deployment, NOW + 20 * SECOND, "a")
    assert (stopped.end_reason, stopped.charged_ms) == (EndReason.DURATION_REACHED, 10_000)


@given(st.lists(st.integers(0, 3_000_000), max_size=40), st.integers(1, 5))
def test_no_microsecond_is_lost_however_often_it_is_counted(gaps_us: list[int], replicas: int) -> None:
    keys = "abcde"[:replicas]
    deployment, now = active(*keys), NOW
    for number, gap_us in enumerate(gaps_us):
        now += timedelta(microseconds=gap_us)
        deployment = count(deployment, now, keys[number % replicas])
    deployment = count(deployment, now, *keys)
    elapsed_us = (now - NOW) // timedelta(microseconds=1)
    assert deployment.charged_ms * 1000 * replicas + deployment.charged_rest_us == replicas * elapsed_us


def test_more_that_serve_than_are_wanted_cost_no_more() -> None:
    deployment = lifecycle.place(active("a"), Plan(("b",)), NOW)
    deployment = lifecycle.activate(deployment, at(deployment, "b"), PARITY, "p", NOW + SECOND)
    deployment = count(deployment, NOW + 4 * SECOND, "a", "b")
    assert deployment.charged_ms == 4_000
    # What follows another is counted from where it follows, and not from its own last probe.
    deployment = lifecycle.place(deployment, Plan(given_up=(at(deployment, "a"),)), NOW + 6 * SECOND)
    assert count(deployment, NOW + 8 * SECOND, "b").charged_ms == 6_000


def test_a_candidate_is_ready_once_it_serves_wherever_the_other_version_does_and_goes_on_counting_there() -> None:
    version = replace(active().version, number=2)
    deployment = lifecycle.propose(active("a", "b", "c"), version, 0, NOW)
    deployment = lifecycle.lose(deployment, at(deployment, "c"), "dead", NOW)
    assert not lifecycle.may_be_ready(deployment)
    deployment = lifecycle.activate(deployment, beside(deployment, "a"), PARITY, "p", NOW + SECOND)
    assert not lifecycle.may_be_ready(deployment)
    deployment = count(deployment, NOW + 2 * SECOND, "a")
    deployment = lifecycle.activate(deployment, beside(deployment, "b"), PARITY, "p", NOW + 3 * SECOND)
    assert lifecycle.may_be_ready(deployment), "where the other does not serve either, it cannot"
    promoted = lifecycle.pass_gate(deployment, NOW + 3 * SECOND)
    assert (promoted.version.number, promoted.candidate) == (2, None)
    assert {item.key for item in promoted.instances} == {(2, "a"), (2, "b"), (2, "c")}
    counted = count(promoted, NOW + 6 * SECOND, "a", "b")
    assert counted.charged_ms == 2 * 6_000 // 3


def test_a_candidate_that_was_ready_serves_no_more_once_it_is_lost_where_the_other_version_is_not() -> None:
    deployment = lifecycle.propose(active("a", "b"), replace(active().version, number=2), 50, NOW)
    for key in "ab":
        deployment = lifecycle.activate(deployment, beside(deployment, key), PARITY, "p", NOW)
    deployment = lifecycle.pass_gate(deployment, NOW)
    assert lifecycle.candidate_serves(deployment)
    half = lifecycle.lose(deployment, beside(deployment, "b"), "dead", NOW)
    assert not lifecycle.candidate_serves(half)
    assert lifecycle.candidate_serves(lifecycle.lose(half, at(half, "b"), "dead", NOW))
    for lost in (at(half, "a"), at(half, "b"), beside(half, "a")):
        half = lifecycle.lose(half, lost, "dead", NOW)
    assert not lifecycle.candidate_serves(half), "neither serves anywhere"


def test_a_candidate_that_does_not_come_back_is_given_up_after_some_attempts_but_only_where_the_other_serves() -> None:
    deployment = lifecycle.propose(active("a", "b"), replace(active().version, number=2), 50, NOW)
    for key in "ab":
        deployment = lifecycle.activate(deployment, beside(deployment, key), PARITY, "p", NOW)
    deployment = lifecycle.pass_gate(deployment, NOW)
    deployment = lifecycle.lose(deployment, beside(deployment, "b"), "dead", NOW)
    for _ in range(LOAD_ATTEMPTS - 1):
        assert not lifecycle.is_beyond_help(deployment, beside(deployment, "b"))
        deployment = lifecycle.put_off(deployment, beside(deployment, "b"), "damaged", NOW)
    assert lifecycle.is_beyond_help(deployment, beside(deployment, "b"))
    assert not lifecycle.is_beyond_help(deployment, at(deployment, "b")), "it is not the candidate's"
    alone = lifecycle.lose(deployment, at(deployment, "b"), "dead", NOW)
    assert not lifecycle.is_beyond_help(alone, beside(alone, "b")), "nothing serves there"


def test_a_candidate_that_does_not_load_is_given_up_at_once_unless_it_is_ready_or_nothing_serves_there() -> None:
    deployment = lifecycle.propose(active("a", "b"), replace(active().version, number=2), 50, NOW)
    assert lifecycle.is_beyond_help(deployment, beside(deployment, "b"))
    alone = lifecycle.lose(deployment, at(deployment, "b"), "dead", NOW)
    assert not lifecycle.is_beyond_help(alone, beside(alone, "b")), "it may be the Triton"
    live = lifecycle.activate(alone, beside(alone, "a"), PARITY, "p", NOW)
    live = lifecycle.recover(lifecycle.pass_gate(live, NOW), at(live, "b"), NOW)
    assert not lifecycle.is_beyond_help(live, beside(live, "b")), "it has its share on the other one"


def test_what_is_placed_anew_takes_the_candidate_along_and_what_is_given_up_takes_it_away() -> None:
    proposed = lifecycle.propose(active("a"), replace(active().version, number=2), 10, NOW)
    moving = lifecycle.place(proposed, Plan(("b",)), NOW)
    assert {item.key for item in moving.instances} == {(1, "a"), (2, "a"), (1, "b"), (2, "b")}
    moving = lifecycle.activate(moving, at(moving, "b"), PARITY, "p", NOW)
    moved = lifecycle.place(moving, Plan(given_up=(at(moving, "a"),)), NOW)
    assert {item.key for item in moved.instances} == {(1, "b"), (2, "b")}
    assert {item.key for item in lifecycle.abandon(moved).instances} == {(1, "b")}


def test_what_never_served_fails_once_every_triton_has_refused_it_and_what_serves_elsewhere_does_not() -> None:
    deployment = deploying("a", "b")
    for _ in range(LOAD_ATTEMPTS):
        deployment = lifecycle.refuse_load(deployment, at(deployment, "a"), "no", NOW)
    assert deployment.state is DeploymentState.DEPLOYING
    serving = lifecycle.activate(deployment, at(deployment, "b"), PARITY, "p", NOW)
    assert lifecycle.refuse_load(serving, at(serving, "a"), "no", NOW).state is DeploymentState.ACTIVE
    for _ in range(LOAD_ATTEMPTS):
        deployment = lifecycle.refuse_load(deployment, at(deployment, "b"), "no", NOW)
    assert (deployment.state, deployment.instances) == (DeploymentState.FAILED, ())


@pytest.mark.parametrize("first", ["a", "b"])
def test_of_two_replicas_one_that_disagrees_ends_nothing_while_the_other_may_agree_and_whichever_ends_first(
    first: str,
) -> None:
    other = "b" if first == "a" else "a"

    def disagree(deployment: Deployment, triton_id: str) -> Deployment:
        return lifecycle.rule_out(
            deployment, at(deployment, triton_id), EndReason.PARITY_FAILED, "few agree", DISAGREEMENT, NOW
        )

    one_left = disagree(deploying("a", "b"), first)
    assert (one_left.state, at(one_left, first).message) == (DeploymentState.DEPLOYING, "few agree")
    serving = lifecycle.activate(one_left, at(one_left, other), PARITY, "p", NOW)
    assert (serving.state, serving.error_message) == (DeploymentState.ACTIVE, "")
    late = disagree(lifecycle.activate(deploying("a", "b"), at(one_left, other), PARITY, "p", NOW), first)
    assert (late.state, late.version.parity) == (DeploymentState.ACTIVE, PARITY)
    assert set(late.instances) == set(serving.instances)
    failed = disagree(one_left, other)
    assert (failed.state, failed.end_reason) == (DeploymentState.FAILED, EndReason.PARITY_FAILED)
    assert failed.version.parity == DISAGREEMENT
    alone = disagree(deploying(first), first)
    assert (alone.state, alone.error_message) == (DeploymentState.FAILED, "few agree")


@pytest.mark.parametrize("served", [False, True])
def test_what_a_triton_does_not_take_is_tried_at_another_and_given_up_once_it_serves_there(served: bool) -> None:
    deployment = lifecycle.lose(active("a"), at(active("a"), "a"), "dead", NOW) if served else deploying("a")
    for _ in range(LEAVE_ATTEMPTS):
        assert lifecycle.is_placed(deployment, "")
        deployment = lifecycle.refuse_load(deployment, at(deployment, "a"), "no", NOW)
    assert not lifecycle.is_placed(deployment, "")
    assert replan(deployment, "", NOW, room="") == deployment, "nobody else has room"
    deployment = replan(deployment, "", NOW)
    assert [item.triton_id for item in deployment.instances] == ["a", "b"]
    for _ in range(LOAD_ATTEMPTS):
        deployment = lifecycle.refuse_load(deployment, at(deployment, "a"), "no", NOW)
    assert replan(deployment, "", NOW) == deployment, "another may take it yet"
    moved = lifecycle.activate(deployment, at(deployment, "b"), PARITY, "p", NOW)
    moved = replan(moved, "", NOW)
    assert (moved.state, [item.triton_id for item in moved.instances]) == (DeploymentState.ACTIVE, ["b"])
    assert lifecycle.is_placed(moved, "")
    back = replan(lifecycle.activate(deployment, at(deployment, "a"), PARITY, "p", NOW), "", NOW)
    assert [item.triton_id for item in back.instances] == ["a"], "the first takes it after all"
    for _ in range(LEAVE_ATTEMPTS):
        deployment = lifecycle.refuse_load(deployment, at(deployment, "b"), "no", NOW)
    assert replan(deployment, "", NOW, room="c") == deployment, "it is the model"
    assert lifecycle.is_placed(deployment, ""), "no look has anything to do"
    assert not lifecycle.is_placed(deployment, "a")
    serves = lifecycle.activate(deployment, at(deployment, "a"), PARITY, "p", NOW)
    assert not lifecycle.is_placed(serves, ""), "the other goes"


def test_it_is_stopped_once_every_triton_has_unloaded_it() -> None:
    deployment = lifecycle.stop(active("a", "b"), EndReason.STOPPED_BY_USER, NOW)
    deployment = lifecycle.unloaded(deployment, at(deployment, "b"), NOW)
    assert deployment.state is DeploymentState.STOPPING
    deployment = lifecycle.unloaded(deployment, at(deployment, "a"), NOW)
    assert (deployment.state, deployment.instances) == (DeploymentState.STOPPED, ())


def test_beside_a_version_that_does_not_serve_a_candidate_answers_if_it_is_ready_and_has_a_share() -> None:
    version = Version(2, "m", "e", ("cup",), (("cup", 0.5),))
    proposed = lifecycle.propose(active(), version, 50, NOW)
    lost = lifecycle.lose(proposed, at(proposed), "dead", NOW)
    assert (active().answers, lost.answers) == (True, False), "it is not ready"
    ready = lifecycle.pass_gate(lifecycle.activate(proposed, beside(proposed), PARITY, "p", NOW), NOW)
    alone = lifecycle.lose(ready, at(ready), "dead", NOW)
    assert (alone.state, alone.answers) == (DeploymentState.DEGRADED, True)
    assert not lifecycle.split(alone, 0).answers
    assert not lifecycle.lose(alone, beside(alone), "dead", NOW).answers
    assert lifecycle.recover(alone, at(alone), NOW).state is DeploymentState.ACTIVE


def replan(deployment: Deployment, leaving: str, now: datetime, room: str = "b") -> Deployment:
    """As at a look, with room there."""
    awaited = lifecycle.awaited(deployment, leaving, now)
    made = plan(deployment.own_instances, 1, leaving, dict.fromkeys(room, 1), awaited)
    return lifecycle.place(deployment, made, now)


def test_what_is_drained_is_given_up_once_a_candidate_that_is_ready_serves_in_the_new_place_too() -> None:
    proposed = lifecycle.propose(active("a"), replace(active().version, number=2), 50, NOW)
    ready = lifecycle.pass_gate(lifecycle.activate(proposed, beside(proposed, "a"), PARITY, "p", NOW), NOW)
    moving = replan(ready, "a", NOW)
    moving = lifecycle.activate(moving, at(moving, "b"), PARITY, "p", NOW)
    assert replan(moving, "a", NOW + FOLLOW_LIMIT - SECOND) == moving
    followed = lifecycle.activate(moving, beside(moving, "b"), PARITY, "p", NOW + SECOND)
    followed = replan(followed, "a", NOW + SECOND)
    assert [(item.key, item.serving) for item in followed.instances] == [((1, "b"), True), ((2, "b"), True)]
    late = replan(moving, "a", NOW + FOLLOW_LIMIT)
    assert [item.key for item in late.instances] == [(1, "b"), (2, "b")], "but it is not waited for, for ever"
    lost = lifecycle.lose(moving, beside(moving, "a"), "dead", NOW)
    assert [item.key for item in replan(lost, "a", NOW).instances] == [(1, "b"), (2, "b")], "it serves there no more"
    unready = lifecycle.place(proposed, Plan(("b",)), NOW)
    unready = lifecycle.activate(unready, at(unready, "b"), PARITY, "p", NOW)
    assert [item.key for item in replan(unready, "a", NOW).instances] == [(1, "b"), (2, "b")], "it has no requests yet"


def test_what_a_triton_does_not_take_stays_until_a_candidate_that_serves_there_does_in_the_new_place_too() -> None:
    proposed = lifecycle.propose(active("a"), replace(active().version, number=2), 50, NOW)
    ready = lifecycle.pass_gate(lifecycle.activate(proposed, beside(proposed, "a"), PARITY, "p", NOW), NOW)
    stuck = lifecycle.lose(ready, at(ready, "a"), "dead", NOW)
    for _ in range(LEAVE_ATTEMPTS):
        stuck = lifecycle.put_off(stuck, at(stuck, "a"), "dead", NOW)
    moving = replan(stuck, "", NOW)
    moving = lifecycle.activate(moving, at(moving, "b"), PARITY, "p", NOW)
    assert replan(moving, "", NOW + FOLLOW_LIMIT - SECOND) == moving
    followed = replan(lifecycle.activate(moving, beside(moving, "b"), PARITY, "p", NOW), "", NOW)
    assert [(item.key, item.serving) for item in followed.instances] == [((1, "b"), True), ((2, "b"), True)]
    late = replan(moving, "", NOW + FOLLOW_LIMIT)
    assert [item.key for item in late.instances] == [(1, "b"), (2, "b")], "but it is not waited for, for ever"


class Served(RuleBasedStateMachine):
    """Whatever happens to replicas and versions, in whatever order: the counter stays below the time that passed."""

    deployment: Deployment

    @initialize(replicas=st.integers(1, 3))
    def begin(self, replicas: int) -> None:
        self.deployment, self.now = active(*"abc"[:replicas]), NOW

    @rule(gap_ms=st.integers(1, 20_000))
    def time_passes(self, gap_ms: int) -> None:
        self.now += timedelta(milliseconds=gap_ms)

    @rule(which=st.integers(0, 9))
    def a_probe_is_good(self, which: int) -> None:
        found = [item for item in self.deployment.instances if item.serving]
        if found:
            self.deployment = lifecycle.count(self.deployment, found[which % len(found)], self.now, attended())

    @rule(which=st.integers(0, 9))
    def a_probe_is_bad(self, which: int) -> None:
        found = [item for item in self.deployment.instances if item.serving]
        if found:
            self.deployment = lifecycle.lose(self.deployment, found[which % len(found)], "dead", self.now)

    @rule(which=st.integers(0, 9))
    def one_serves(self, which: int) -> None:
        found = [item for item in self.deployment.instances if not item.serving]
        if found:
            self.deployment = lifecycle.activate(self.deployment, found[which % len(found)], PARITY, "p", self.now)

    @rule(which=st.integers(0, 9))
    def one_is_not_brought_back(self, which: int) -> None:
        found = [item for item in self.deployment.instances if not item.serving]
        if found:
            self.deployment = lifecycle.put_off(self.deployment, found[which % len(found)], "dead", self.now)

    @rule(leaving=st.sets(st.sampled_from("abcde")), room=st.dictionaries(st.sampled_from("abcde"), st.integers(0, 1)))
    def it_is_placed(self, leaving: set[str], room: dict[str, int]) -> None:
        awaited = lifecycle.awaited(self.deployment, leaving, self.now)
        made = plan(self.deployment.own_instances, self.deployment.form.replicas, leaving, room, awaited)
        assert made == Plan() or not lifecycle.is_placed(self.deployment, leaving)
        self.deployment = lifecycle.place(self.deployment, made, self.now)

    @precondition(lambda self: self.deployment.candidate is None)
    @rule(percent=st.sampled_from([0, 10]))
    def a_version_is_proposed(self, percent: int) -> None:
        number = self.deployment.version.number + 1
        version = Version(number, "m", "e", ("cup",), (("cup", 0.5),))
        self.deployment = lifecycle.propose(self.deployment, version, percent, self.now)

    @precondition(lambda self: lifecycle.may_be_ready(self.deployment))
    @rule()
    def it_is_ready(self) -> None:
        self.deployment = lifecycle.pass_gate(self.deployment, self.now)

    @precondition(lambda self: self.deployment.shared and lifecycle.candidate_serves(self.deployment))
    @rule()
    def it_is_promoted(self) -> None:
        served = len(self.deployment.counted)
        self.deployment = lifecycle.promote(self.deployment, self.now)
        assert self.deployment.state is DeploymentState.ACTIVE
        assert len(self.deployment.counted) >= served

    @precondition(lambda self: self.deployment.candidate is not None)
    @rule()
    def it_is_abandoned(self) -> None:
        self.deployment = lifecycle.abandon(self.deployment)

    @invariant()
    def it_is_active_exactly_while_something_of_its_version_serves(self) -> None:
        serves = any(item.serving for item in self.deployment.own_instances)
        assert self.deployment.state is (DeploymentState.ACTIVE if serves else DeploymentState.DEGRADED)
        assert self.deployment.own_instances
        assert all((item.probed_at is not None) == item.serving for item in self.deployment.instances)
        assert len({item.key for item in self.deployment.instances}) == len(self.deployment.instances)

    @invariant()
    def it_is_charged_for_no_more_than_the_time_that_passed(self) -> None:
        assert timedelta(milliseconds=self.deployment.charged_ms) <= self.now - NOW
        counted = self.deployment.counted
        assert len(counted) <= self.deployment.form.replicas
        pending = [min(self.now - item.probed_at, PROBE_GAP_LIMIT) for item in counted if item.probed_at is not None]
        possible = timedelta(milliseconds=self.deployment.charged_ms) + sum(pending, timedelta()) / max(
            1, self.deployment.form.replicas
        )
        assert possible <= self.now - NOW


TestServed = Served.TestCase
