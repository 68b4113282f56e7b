import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax import config
from molmoact2_jax.models import flow

CFG = config.FlowConfig()
MEAN, STD = 0.7, 0.25  # one-dimensional Gaussian data, for which the optimal velocity is known


def gaussian_velocity(x, t):
    """E[data - noise | x_t = x] for noise N(0, 1) and data N(MEAN, STD^2)."""
    gain = (t * STD**2 - (1 - t)) / (t**2 * STD**2 + (1 - t) ** 2)
    return MEAN + gain * (x - t * MEAN)


def draws(objective, velocity, num_samples=4, *, chunk=None, valid=None, channels=None, seed=0):
    chunk = jnp.ones((3, 2)) if chunk is None else chunk
    valid = jnp.ones(chunk.shape[0], bool) if valid is None else valid
    channels = jnp.ones(chunk.shape[1], bool) if channels is None else channels
    return flow.chunk_errors(
        flow.OBJECTIVES[objective], jax.random.key(seed), chunk, velocity, CFG,
        valid=valid, channels=channels, num_samples=num_samples,
    )  # fmt: skip


def test_time_zero_is_noise_and_time_one_is_data():
    noise, chunk = jnp.zeros((4, 2)), jnp.ones((4, 2))
    np.testing.assert_array_equal(flow.interpolate(noise, chunk, 0.0), noise)
    np.testing.assert_array_equal(flow.interpolate(noise, chunk, 1.0), chunk)


def test_target_is_the_time_derivative_of_the_path():
    noise, chunk = (jax.random.normal(jax.random.key(i), (5, 3)) for i in (1, 2))
    _, rate = jax.jvp(lambda t: flow.interpolate(noise, chunk, t), (0.3,), (1.0,))
    np.testing.assert_allclose(flow.target(noise, chunk), rate, rtol=1e-6)


def test_times_stay_in_their_range_with_the_mean_of_the_released_density():
    t = jax.vmap(lambda k: flow.sample_time(k, CFG))(jax.random.split(jax.random.key(0), 20_000))
    assert t.min() >= 0.001 and t.max() <= 1.0
    assert abs(float(t.mean()) - 0.4006) < 4 * 0.262 / np.sqrt(20_000)
    u = (np.asarray(t) - 0.001) / 0.999  # P(u < x) = 1 - (1 - x)^1.5
    assert abs((u < 0.5).mean() - (1 - 0.5**1.5)) < 0.015


def test_cutoff_ends_the_range_of_times():
    cfg = config.FlowConfig(cutoff=0.5)
    t = jax.vmap(lambda k: flow.sample_time(k, cfg))(jax.random.split(jax.random.key(0), 1000))
    assert 0.45 < t.max() <= 0.5


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_flow_matching_error_of_the_optimal_field_is_the_conditional_variance(t):
    keys = jax.random.split(jax.random.key(3), 2)
    noise, chunk = jax.random.normal(keys[0], (50_000, 1)), MEAN + STD * jax.random.normal(keys[1], (50_000, 1))
    error = flow.squared_error(noise, chunk, t, gaussian_velocity).mean()
    np.testing.assert_allclose(error, STD**2 / (t**2 * STD**2 + (1 - t) ** 2), rtol=0.03)


def test_flow_matching_of_a_zero_field_starts_at_one_plus_the_mean_square_of_the_data():
    errors, _ = draws("flow_matching", lambda x, t: jnp.zeros_like(x), 4000, chunk=jnp.full((3, 2), 0.5))
    np.testing.assert_allclose(errors.mean(), 1.25, rtol=0.03)


def test_consistency_of_a_constant_field_is_its_flow_matching_error():
    field = lambda x, t: jnp.full_like(x, 0.4)  # noqa: E731
    (consistent, drawn), (matched, _) = (draws(name, field, 64) for name in ("consistency", "flow_matching"))
    inside = np.asarray(drawn["time"]) < 0.9  # later draws meet the end of the path before a full gap
    np.testing.assert_allclose(consistent[inside], matched[inside], rtol=1e-3, atol=1e-4)


def test_consistency_vanishes_for_the_field_of_a_single_point():
    errors, drawn = draws("consistency", lambda x, t: (1.0 - x) / jnp.maximum(1 - t, 1e-3), 64)
    keep = np.asarray(drawn["time"]) < 0.98
    np.testing.assert_allclose(errors[keep], 0.0, atol=1e-6)


@pytest.mark.parametrize("objective", sorted(flow.OBJECTIVES))
def test_padding_changes_neither_error_nor_gradient(objective):
    valid, channels = jnp.array([True, True, False]), jnp.array([True, False])
    mask = np.asarray(valid)[:, None] & np.asarray(channels)
    clean = np.full((3, 2), 0.3, np.float32)

    def loss(w, chunk):
        field = lambda x, t: w * (x + x.sum()) + t  # noqa: E731  (mixes steps and channels)
        errors, _ = draws(objective, field, chunk=jnp.asarray(chunk), valid=valid, channels=channels)
        return flow.paper_average(errors, valid, channels)

    results = [jax.value_and_grad(loss)(0.5, np.where(mask, clean, dirt)) for dirt in (0.0, 1e3, np.nan)]
    for other in results[1:]:
        jax.tree.map(np.testing.assert_array_equal, results[0], other)
    assert np.isfinite(results[0]).all() and results[0][1] != 0


def test_draws_of_a_chunk_are_independent_and_fewer_draws_are_a_prefix():
    field = lambda x, t: jnp.zeros_like(x)  # noqa: E731
    four, two = (draws("flow_matching", field, k)[0] for k in (4, 2))
    np.testing.assert_array_equal(four[:2], two)
    assert len({float(e.sum()) for e in four}) == 4


def test_objectives_compose_with_jit_vmap_and_grad():
    def loss(w, key):
        return draws("flow_matching", lambda x, t: w * x, seed=0, chunk=jax.random.normal(key, (3, 2)))[0].mean()

    keys = jax.random.split(jax.random.key(0), 3)
    batched = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(0.1, keys)
    np.testing.assert_allclose(batched, [jax.grad(loss)(0.1, k) for k in keys], rtol=1e-5)


def test_released_average_weighs_a_short_horizon_less_and_the_paper_average_does_not():
    errors, channels = jnp.ones((4, 30, 32)), jnp.arange(32) < 7
    short, full = jnp.arange(30) < 15, jnp.ones(30, bool)
    assert flow.released_average(errors, short, channels) == 0.5
    assert flow.paper_average(errors, short, channels) == 1.0
    assert flow.released_average(errors, full, channels) == flow.paper_average(errors, full, channels) == 1.0


@pytest.mark.parametrize("average", sorted(flow.AVERAGES))
def test_a_padded_chunk_adds_nothing(average):
    loss = flow.AVERAGES[average](jnp.full((2, 4, 6, 3), jnp.nan), jnp.zeros((2, 6), bool), jnp.zeros((2, 3), bool))
    np.testing.assert_array_equal(loss, [0.0, 0.0])


def test_evaluation_times_are_declared_in_the_order_of_use():
    np.testing.assert_array_equal(flow.SOLVERS["euler"].times(4), np.float32([0, 0.25, 0.5, 0.75]))
    np.testing.assert_array_equal(flow.SOLVERS["midpoint"].times(2), np.float32([0, 0.25, 0.5, 0.75]))
    np.testing.assert_array_equal(flow.SOLVERS["heun"].times(2), np.float32([0, 0.5, 0.5, 1]))
    np.testing.assert_array_equal(flow.SOLVERS["euler"].times(10), [np.float32(i / 10) for i in range(10)])


def end_point(name, field, start, num_steps):
    solver = flow.SOLVERS[name]
    times = jnp.asarray(solver.times(num_steps))
    run = jax.jit(lambda x: flow.integrate(solver, lambda x, j: field(x, times[j]), x, num_steps))
    return np.asarray(run(start))


@pytest.mark.parametrize("name", sorted(flow.SOLVERS))
def test_the_optimal_field_carries_noise_to_data(name):
    noise = jnp.linspace(-2, 2, 9)  # the flow between Gaussians maps quantile to quantile
    np.testing.assert_allclose(end_point(name, gaussian_velocity, noise, 200), MEAN + STD * noise, atol=0.01)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_the_error_of_a_solver_falls_at_its_order(name, order):
    ends = [end_point(name, lambda x, t: (1 + t) * x, jnp.float32(1), n) for n in (4, 8, 16)]
    errors = [abs(float(end) - np.exp(1.5)) for end in ends]
    rates = [np.log2(a / b) for a, b in itertools.pairwise(errors)]
    np.testing.assert_allclose(rates, order, atol=0.3)


def test_integration_is_differentiable():
    grad = jax.grad(lambda w: flow.integrate(flow.SOLVERS["euler"], lambda x, j: w * x, jnp.float32(1), 3))(0.0)
    np.testing.assert_allclose(grad, 1.0)  # d/dw (1 + w/3)^3 at 0


def test_integration_refuses_zero_steps():
    with pytest.raises(ValueError, match="num_steps is 0, expected at least 1"):
        flow.integrate(flow.SOLVERS["euler"], lambda x, j: x, jnp.ones(2), 0)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'rk4', expected one of \['euler', 'heun', 'midpoint'\]"):
        flow.find(flow.SOLVERS, "rk4")


def test_an_objective_outside_the_library_is_found_by_its_module():
    assert flow.find(flow.OBJECTIVES, "molmoact2_jax.models.flow:flow_matching") is flow.flow_matching


def test_a_name_cannot_be_registered_twice():
    with pytest.raises(ValueError, match="'euler' is taken"):
        flow.register(flow.SOLVERS, "euler")(flow.SOLVERS["heun"])
