"""The packer solves its knapsack exactly, loses nothing and says what bounded each row."""

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
    """The optimum over unrounded lengths, from an integer program."""
    sizes = pack.sizes_of(metas)
    worth = sizes[:, 0] + pack.CROP_VALUE * sizes[:, 1]
    found = optimize.milp(
        -worth,
        constraints=optimize.LinearConstraint(sizes.T, ub=limits.sizes()),
        integrality=1,
        bounds=optimize.Bounds(0, 1),
    )
    return round(-found.fun)


def test_where_no_two_fit_together_the_choice_is_the_same_without_a_table():
    rng = np.random.default_rng(7)
    for _ in range(50):
        count = int(rng.integers(2, pack.BUFFER))
        sizes = np.stack([rng.integers(30, 48, count), np.ones(count, int), np.ones(count, int)], axis=1)
        chosen = pack.choose(sizes, pack.Limits(48, 1, 1))
        costs, caps = sizes[:, [2, 1, 0]], np.array([1, 1, 48])
        table = pack._table(costs, sizes[:, 0] + pack.CROP_VALUE * sizes[:, 1], caps)
        assert chosen == pack._backtrack(table, costs, caps)


@pytest.mark.parametrize("limits", [ROBOT, MIXED, pack.Limits(16384, 128, 48)])
def test_a_row_is_worth_nearly_what_an_exact_solver_packs(limits):
    rng = np.random.default_rng(1)
    ours, exact = 0, 0
    for _ in range(8):
        metas = [m for m in examples(rng, pack.BUFFER, robot=rng.random()) if m.tokens <= limits.tokens]
        ours += value([metas[i] for i in pack.choose(pack.sizes_of(metas), limits)])
        exact += best_value(metas, limits)
    assert 0.97 * exact <= ours <= exact


def test_with_unit_granularity_the_choice_is_the_exact_optimum():
    rng = np.random.default_rng(2)
    for _ in range(5):
        metas = examples(rng, 12, robot=0.5)
        chosen = pack.choose(pack.sizes_of(metas), ROBOT, granularity=1)
        assert value([metas[i] for i in chosen]) == best_value(metas, ROBOT)


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
    chosen = pack.choose(np.array([[100, 1, 1], [90, 1, 1], [80, 1, 1]]), ROBOT)
    assert chosen == [2, 1, 0]
