"""The packer solves its knapsack exactly, loses nothing, keeps nothing back and says what bounded each row."""

import collections

import numpy as np
import pytest
from scipy import optimize

from molmoact2_jax.data import pack

ROBOT = pack.Limits(2100, 8, 5)
MIXED = pack.Limits(4200, 8, 5)


def examples(rng, count, robot=0.8):
    """Sizes like those of the real mixture: 1-3 cameras with a chunk, texts, pictures and videos without."""
    metas = []
    for i in range(count):
        if rng.random() < robot:
            crops = int(rng.integers(1, 4))
            metas.append(pack.Meta(0, i, 0, 201 * crops + int(rng.integers(110, 240)), crops, 1))
        else:
            crops = int(rng.choice([0, 1, 2, 5, 8]))
            metas.append(pack.Meta(1, i, 0, 100 * crops + int(rng.integers(20, 900)), crops, 0))
    return metas


def value(metas):
    return sum(m.tokens + pack.CROP_VALUE * m.crops for m in metas)


def best_value(metas, limits):
    """The optimum, from an integer program."""
    sizes = pack.sizes_of(metas)
    worth = sizes[:, 0] + pack.CROP_VALUE * sizes[:, 1]
    found = optimize.milp(
        -worth,
        constraints=optimize.LinearConstraint(sizes.T, ub=limits.sizes()),
        integrality=1,
        bounds=optimize.Bounds(0, 1),
    )
    return round(-found.fun)


def chosen(metas, limits):
    return [metas[i] for i in pack.choose(pack.sizes_of(metas), limits)]


@pytest.mark.parametrize("limits", [ROBOT, MIXED, pack.Limits(2000, 8, 5), pack.Limits(16384, 128, 48)])
def test_a_row_is_worth_what_an_exact_solver_packs(limits):
    rng = np.random.default_rng(1)
    for _ in range(8):
        metas = [m for m in examples(rng, pack.BUFFER, robot=rng.random()) if m.tokens <= limits.tokens]
        row = chosen(metas, limits)
        assert not limits.exceeded(pack.sizes_of(row).sum(axis=0))
        assert value(row) == best_value(metas, limits)


@pytest.mark.parametrize(("tokens", "crops", "count"), [(525, 2, 4), (1050, 4, 2), (2099, 8, 1), (420, 0, 5)])
def test_examples_that_are_all_alike_fill_a_row(tokens, crops, count):
    metas = [pack.Meta(0, i, 0, tokens, crops, 1) for i in range(pack.BUFFER)]
    assert chosen(metas, ROBOT) == metas[:count][::-1]


def test_an_example_of_any_length_up_to_the_limit_leaves():
    for limit in (997, 2000, 2101, 4100):
        for tokens in range(limit - 9, limit + 1):
            lone = pack.Meta(0, 0, 0, tokens, 1, 1)
            assert pack.Packer(pack.Limits(limit), waiting=[lone]).take().examples == (lone,)


def test_of_examples_of_equal_worth_the_earlier_is_chosen():
    sizes = np.array([[30, 1, 1], [47, 1, 1], [47, 1, 1]])
    assert pack.choose(sizes, pack.Limits(48, 1, 1)) == [1]
    assert pack.choose(np.zeros((0, 3), int), ROBOT) == []


def test_no_example_waits_for_ever():
    """A film of little worth for its crops, among robots that are always worth more."""
    film = pack.Meta(1, 0, 0, 900, 8, 0)
    packer = pack.Packer(MIXED, buffer=8, waiting=[film])
    robots = (pack.Meta(0, i, 0, 570 + i % 7, 2, 1) for i in range(10**6))
    while film in packer.waiting:
        packer.add(next(robots))
    assert 0 < packer.rows <= pack.OLDEST_EVERY * packer.buffer
    assert packer.rows % pack.OLDEST_EVERY == 0  # no other row takes it
    again = pack.Packer(MIXED, 8, [film, *packer.waiting[1:]], rows=packer.rows - 1)
    assert film in again.take().examples


@pytest.mark.parametrize("limits", [ROBOT, MIXED])
def test_no_row_exceeds_a_limit_and_every_example_leaves_exactly_once(limits):
    fed = [m for m in examples(np.random.default_rng(3), 400) if not limits.exceeded(pack.sizes_of([m])[0])]
    packer = pack.Packer(limits)
    rows = [row for m in fed if (row := packer.add(m))]
    while packer.waiting:
        rows.append(packer.take())
    for row in rows:
        assert row.examples and not limits.exceeded(pack.sizes_of(row.examples).sum(axis=0))
    assert collections.Counter(m for row in rows for m in row.examples) == collections.Counter(fed)


@pytest.mark.parametrize(("limits", "robot"), [(ROBOT, 1.0), (MIXED, 0.9), (pack.Limits(4200, 8, 0), 0.0)])
def test_a_stream_is_filled_nearly_as_by_an_exact_solver_though_nothing_waits_for_ever(limits, robot):
    packer, ours, best = pack.Packer(limits), 0, 0
    for m in examples(np.random.default_rng(6), 1500, robot):
        if limits.exceeded(pack.sizes_of([m])[0]):
            continue
        waiting = list(packer.waiting)
        if row := packer.add(m):
            ours, best = ours + value(row.examples), best + value(chosen(waiting, limits))
    assert packer.rows > 2 * pack.OLDEST_EVERY
    assert 0.99 * best < ours < best


def test_nothing_leaves_before_the_buffer_is_full():
    packer = pack.Packer(ROBOT, buffer=4)
    metas = examples(np.random.default_rng(4), 5, robot=1)
    assert [packer.add(m) is None for m in metas] == [True] * 4 + [False]
    assert packer.waiting[-1] == metas[-1]  # the newcomer waits for the next row


def test_a_packer_goes_on_from_its_waiting_examples():
    metas = examples(np.random.default_rng(5), 120)
    whole = pack.Packer(MIXED)
    rows = [whole.add(m) for m in metas]
    first = pack.Packer(MIXED)
    for m in metas[:70]:
        first.add(m)
    second = pack.Packer(MIXED, waiting=first.waiting)
    assert [second.add(m) for m in metas[70:]] == rows[70:]


def test_an_example_above_a_limit_is_refused_in_words():
    with pytest.raises(ValueError, match=r"exceeds \('tokens', 'crops'\)"):
        pack.Packer(ROBOT).add(pack.Meta(0, 7, 0, 5000, 9, 0))


@pytest.mark.parametrize(
    ("size", "bound"),
    [((1000, 1, 0), "tokens"), ((300, 4, 1), "crops"), ((200, 1, 1), "chunks"), ((500, 3, 1), "crops")],
)
def test_the_bound_is_the_limit_that_kept_the_others_out(size, bound):
    packer = pack.Packer(ROBOT, waiting=[pack.Meta(0, i, 0, *size) for i in range(20)])
    assert packer.take().bound == bound


def test_a_row_that_takes_all_that_waits_is_bound_by_supply():
    packer = pack.Packer(ROBOT, waiting=[pack.Meta(0, 0, 0, 100, 1, 1)])
    assert packer.take().bound == "supply"


def test_rows_list_the_newest_example_first():
    assert pack.choose(np.array([[100, 1, 1], [90, 1, 1], [80, 1, 1]]), ROBOT) == [2, 1, 0]
