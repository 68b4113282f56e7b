import threading

import pytest

from molmoact2_jax.serve import worker


class Slow:
    """Computes nothing until told to, and remembers what was computed together."""

    def __init__(self):
        self.begun, self.go_on = threading.Semaphore(0), threading.Semaphore(0)
        self.batches = []

    def __call__(self, payloads):
        self.batches.append(list(payloads))
        self.begun.release()
        assert self.go_on.acquire(timeout=20)
        return [p if isinstance(p, Exception) else f"did {p}" for p in payloads]


@pytest.fixture
def slow():
    return Slow()


def started(slow, **options):
    """A worker that is busy with a first call."""
    made = worker.Worker(slow, **options)
    made.submit("first", 0, "first")
    assert slow.begun.acquire(timeout=20)
    return made


def finish(made, slow):
    for _ in range(100):
        slow.go_on.release()
    assert made.close(timeout=20)


def test_clients_take_turns_whatever_each_has_waiting(slow):
    made = started(slow)
    calls = [made.submit("greedy", 0, f"greedy {i}") for i in range(4)]
    calls += [made.submit("second", 0, "second"), made.submit("third", 0, "third")]
    finish(made, slow)
    assert [p for (p,) in slow.batches] == [
        "first", "greedy 0", "second", "third", "greedy 1", "greedy 2", "greedy 3"
    ]  # fmt: skip
    assert [call.result(0) for call in calls][:2] == ["did greedy 0", "did greedy 1"]


def test_calls_of_one_key_that_wait_together_run_together_and_others_do_not(slow):
    made = started(slow, most_together=3)
    for client, key in enumerate("aabaaa"):
        made.submit(client, key, f"{key}{client}")
    finish(made, slow)
    assert slow.batches[1:] == [["a0", "a1", "a3"], ["b2"], ["a4", "a5"]]


def test_an_error_reaches_its_caller_alone_and_the_thread_goes_on(slow):
    made = started(slow, most_together=2)
    bad, good = made.submit("a", 0, ValueError("bad")), made.submit("b", 0, "good")
    slow.go_on.release(2)
    assert good.result(20) == "did good"
    with pytest.raises(ValueError, match="bad"):
        bad.result(20)

    def broken(payloads):
        raise ZeroDivisionError

    other = worker.Worker(broken)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            other.submit("a", 0, "x").result(20)
    assert other.close(20)
    finish(made, slow)


def test_a_call_that_is_given_up_is_not_computed(slow):
    made = started(slow)
    given_up, kept = made.submit("a", 0, "given up"), made.submit("a", 0, "kept")
    assert given_up.cancel()
    finish(made, slow)
    assert slow.batches == [["first"], ["kept"]] and kept.result(0) == "did kept"


def test_too_many_calls_are_refused_and_a_closed_worker_finishes_what_it_has(slow):
    made = started(slow, most_waiting=2)
    calls = [made.submit("a", 0, i) for i in range(2)]
    assert made.waiting == 2
    with pytest.raises(worker.BusyError, match="2 calls are waiting"):
        made.submit("b", 0, "late")
    assert not made.close(timeout=0.01)
    with pytest.raises(worker.BusyError, match="is ending"):
        made.submit("b", 0, "later")
    finish(made, slow)
    assert [call.result(0) for call in calls] == ["did 0", "did 1"]
