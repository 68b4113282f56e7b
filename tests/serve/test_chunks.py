"""Simulated robots: time is a number that the tests move, and calls answer after as many steps as they are told."""

import concurrent.futures

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from molmoact2_jax.serve import chunks

LENGTH = 20


class Later(concurrent.futures.Executor):
    """Answers each call after a given number of steps; the test counts the steps."""

    def __init__(self, delays):
        self.delays, self.step, self.pending = delays, 0, []

    def submit(self, function, *args):
        future = concurrent.futures.Future()
        delay = self.delays[len(self.delays) and self.step % len(self.delays)]
        self.pending.append((self.step + delay, future, function, args))
        return future

    def tick(self):
        self.step += 1
        for item in [item for item in self.pending if item[0] <= self.step]:
            self.pending.remove(item)
            _, future, function, args = item
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(function(*args))
                except ConnectionError as error:
                    future.set_exception(error)


class Robot:
    """Is where its last action told it to be."""

    def __init__(self):
        self.position = 0.0

    def see(self):
        return self.position

    def move(self, action):
        self.position = float(action[0])


def plan(position):
    """A policy that plans to go one further at each step, so that an action's value says which step it is for."""
    return position + 1 + np.arange(LENGTH, dtype=np.float32)[:, None]


def simulate(delays, ahead, steps=200, ask=plan):
    """Returns what a robot executed at each step (None: it held) and the runner."""
    later, robot, done = Later(delays), Robot(), []
    runner = chunks.Runner(ask, ahead=ahead, executor=later)
    for _ in range(steps):
        action = runner.step(robot.see)
        if action is not None:
            robot.move(action)
        done.append(None if action is None else robot.position)
        later.tick()
    return done, runner


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=7), st.integers(0, LENGTH - 1))
def test_every_action_is_executed_at_the_step_it_was_planned_for_however_late_answers_are(delays, ahead):
    done, runner = simulate(delays, ahead)
    executed = [position for position in done if position is not None]
    assert executed == list(range(1, len(executed) + 1))
    assert runner.counts.executed == len(executed)
    assert runner.counts.held == len(done) - len(executed)
    assert runner.counts.executed > 0


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(0, 9))
def test_a_robot_that_asks_far_enough_ahead_never_stands_still_after_the_first_chunk(delays, more):
    done, _ = simulate(delays, max(delays) + more)
    begun = next(i for i, position in enumerate(done) if position is not None)
    assert None not in done[begun:]


def test_a_robot_that_asks_too_late_stands_still_and_does_not_jump():
    done, runner = simulate([6], ahead=2)
    assert runner.counts.held == pytest.approx(4 * runner.counts.asked, abs=6)
    assert [p for p in done if p is not None] == list(range(1, runner.counts.executed + 1))


def test_a_constant_delay_is_counted_in_executed_actions():
    _, runner = simulate([5], ahead=8)
    assert runner.counts.most_delay == 5
    assert runner.counts.skipped == pytest.approx(5 * runner.counts.asked, abs=10)
    assert runner.counts.replaced > 0


def failing(times):
    """A policy that cannot be reached for its second to n-th call."""
    calls = iter(range(10**6))

    def ask(position):
        if 1 <= next(calls) <= times:
            raise ConnectionError("unplugged")
        return plan(position)

    return ask


def test_the_robot_goes_on_with_what_it_has_while_calls_fail_and_asks_again():
    done, runner = simulate([1], ahead=8, ask=failing(4))
    assert runner.counts.failed == 4
    assert None not in done[1:]


def test_an_error_is_raised_when_the_actions_have_run_out_and_the_next_step_asks_again():
    later, robot, raised = Later([1]), Robot(), []
    runner = chunks.Runner(failing(25), ahead=0, executor=later)
    for step in range(80):
        try:
            action = runner.step(robot.see)
        except ConnectionError:
            raised.append(step)
            action = None
        if action is not None:
            robot.move(action)
        later.tick()
    assert raised and raised[0] > LENGTH
    assert robot.position > LENGTH


def test_a_reset_drops_actions_and_the_answer_on_its_way():
    later, robot = Later([3]), Robot()
    runner = chunks.Runner(plan, ahead=8, executor=later)
    for _ in range(17):  # the next call is on its way
        if (action := runner.step(robot.see)) is not None:
            robot.move(action)
        later.tick()
    assert later.pending
    runner.reset()
    actions = []
    for _ in range(6):
        actions.append(runner.step(lambda: 100.0))
        later.tick()
    assert [a is None for a in actions[:3]] == [True] * 3
    assert float(actions[3][0]) == 101


def test_a_negative_lead_is_refused():
    with pytest.raises(ValueError, match="ahead: -1"):
        chunks.Runner(plan, ahead=-1)


class Clock:
    """A clock that moves when someone sleeps, or works."""

    def __init__(self):
        self.now, self.slept = 0.0, []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


def test_actions_are_executed_at_the_rate_and_late_steps_are_not_caught_up():
    clock, later, times = Clock(), Later([1]), []

    def execute(action):
        times.append(clock.now)
        clock.now += 0.5 if len(times) == 3 else 0.02

    def sleep(seconds):
        clock.sleep(seconds)
        later.tick()

    runner = chunks.Runner(plan, ahead=5, executor=later)
    late = chunks.run(runner, lambda: 0.0, execute, rate_hz=10, steps=8, clock=clock, sleep=sleep)
    assert late == 1
    np.testing.assert_allclose(np.diff(times), [0.1, 0.1, 0.5, 0.1, 0.1, 0.1], atol=1e-9)


def test_a_thread_of_its_own_asks_while_the_robot_moves():
    runner, robot = chunks.Runner(plan, ahead=LENGTH // 2), Robot()
    chunks.run(runner, robot.see, robot.move, rate_hz=500, steps=100)
    runner.close()
    assert robot.position == runner.counts.executed > 50


def test_steps_ahead_are_those_of_a_call_rounded_up():
    assert [chunks.steps_ahead(s, 30) for s in (0.0, 0.01, 0.1, 0.11)] == [0, 1, 3, 4]
