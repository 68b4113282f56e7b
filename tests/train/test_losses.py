import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax.models import flow, masks, molmoact2
from molmoact2_jax.nn import lora
from molmoact2_jax.train import head, losses
from tests.train import small

LOSS = losses.LossConfig(num_samples=2, dropout=0.0, remat_vit="none", remat_llm="none", remat_expert="none")


@functools.cache
def graded(cfg, loss):
    def objective(params, rows, over, key):
        value, metrics = losses.total(losses.Problem(cfg, loss), params, rows, over, key)
        return value, metrics

    return jax.jit(jax.value_and_grad(objective, has_aux=True))


@flow.register(flow.OBJECTIVES, "test_fixed_draws")
def fixed_draws(key, chunk, velocity, cfg):
    """Flow matching with draws that depend on nothing but the chunk, so that packing cannot change them."""
    t = 0.2 + 0.5 * jnp.abs(jnp.sin(chunk.sum()))
    noise = jnp.sin(jnp.arange(chunk.size, dtype=jnp.float32)).reshape(chunk.shape)
    return flow.squared_error(noise, chunk, t, velocity), {}


FIXED = dataclasses.replace(LOSS, objective="test_fixed_draws")


def close(a, b, tolerance=2e-6):
    """Whole trees agree to rounding of the largest entry of each leaf, or of all leaves."""
    scale = max(float(np.abs(x).max()) for x in jax.tree.leaves(b))
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("gate", [None, "per_layer"])
def test_a_packed_row_has_the_loss_and_gradient_of_its_examples_alone(gate):
    cfg = small.model(gate=gate)
    params, rng = small.weights(cfg), np.random.default_rng(1)
    one, two = small.example(rng, 14, depth=True), small.example(rng, 11, steps=4, depth=True)
    packed, apart = small.pack([[one, two]], 32), small.pack([[one], [two]], 32)
    f = graded(cfg, FIXED)
    (a, _), ga = f(params, packed, losses.totals(packed), jax.random.key(0))
    (b, _), gb = f(params, apart, losses.totals(apart), jax.random.key(0))
    np.testing.assert_allclose(a, b, rtol=1e-6)
    close(ga, gb)


def test_how_far_the_gate_is_open_is_a_mean_over_depth_tokens():
    cfg = small.model(gate="per_layer")
    params, rng = small.weights(cfg), np.random.default_rng(1)
    params["gate"] = {
        "kernel": np.zeros_like(params["gate"]["kernel"]),
        "bias": np.full_like(params["gate"]["bias"], -4),
    }
    rows = small.pack([[small.example(rng, 14, depth=True), small.example(rng, 9)]], 32)
    _, sums = losses.total(losses.Problem(cfg, FIXED), params, rows, losses.totals(rows), None)
    spanned = masks.depth_span(rows.tokens, rows.segments >= 0, cfg.tokens).sum()
    assert sums["sum/gated"] == spanned > 0
    np.testing.assert_allclose(sums["sum/gate/mean"] / sums["sum/gated"], 1 / (1 + np.exp(4)), rtol=1e-5)


def test_pooling_the_gate_over_the_row_mixes_its_examples():
    cfg = small.model(gate="per_layer")
    params, rng = small.weights(cfg, scale=0.4), np.random.default_rng(1)
    rows = small.pack([[small.example(rng, 14, depth=True), small.example(rng, 14, depth=True)]], 32)
    values = [
        float(graded(cfg, dataclasses.replace(FIXED, gate_pooling=name))(
            params, rows, losses.totals(rows), jax.random.key(0))[0][1]["loss/flow"])
        for name in ("example", "row")
    ]  # fmt: skip
    assert values[0] != values[1]


def test_padding_changes_neither_loss_nor_gradient():
    cfg = small.model()
    params, rng = small.weights(cfg), np.random.default_rng(2)
    rows = small.pack([[small.example(rng, 12)]], 24)
    dirty = rows._replace(
        tokens=np.where(rows.segments < 0, 57, rows.tokens),
        targets=np.where(rows.segments < 0, 60, rows.targets),
        crops=np.where(np.arange(2)[None, :, None, None, None] > 0, 200, rows.crops).astype(np.uint8),
        actions=np.where(rows.chunk_example[..., None, None] < 0, 1e3, rows.actions).astype(np.float32)
        + 1e3 * ~rows.channel_valid[:, :, None] * (rows.chunk_example >= 0)[..., None, None],
    )
    f = graded(cfg, LOSS)
    (a, _), ga = f(params, rows, losses.totals(rows), None)
    (b, _), gb = f(params, dirty, losses.totals(dirty), None)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    close(ga, gb)


def test_unrolled_layers_change_neither_loss_nor_gradient():
    cfg = small.model(gate="per_layer")
    params, rng = small.weights(cfg), np.random.default_rng(6)
    rows = small.pack([[small.example(rng, 14, depth=True), small.example(rng, 9)]], 32)
    (a, _), ga = graded(cfg, LOSS)(params, rows, losses.totals(rows), None)
    (b, _), gb = graded(cfg, dataclasses.replace(LOSS, unroll=True))(params, rows, losses.totals(rows), None)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    close(ga, gb)


@pytest.mark.parametrize(("insulate", "flows"), [(True, False), (False, True)])
def test_insulation_gives_the_decoder_exactly_no_flow_gradient(insulate, flows):
    cfg = small.model()
    params, rng = small.weights(cfg), np.random.default_rng(3)
    rows = small.pack([[small.example(rng, 12)]], 16)
    rows = rows._replace(weights=np.zeros_like(rows.weights))  # no language loss
    _, grads = graded(cfg, dataclasses.replace(LOSS, insulate=insulate))(params, rows, losses.totals(rows), None)
    for tower in ("llm", "vit", "connector"):
        largest = max(float(np.abs(g).max()) for g in jax.tree.leaves(grads[tower]))
        assert (largest > 0) == flows, tower
    assert max(float(np.abs(g).max()) for g in jax.tree.leaves(grads["expert"])) > 0


def test_a_chunk_reads_its_own_example_alone():
    cfg = small.model()
    params, rng = small.weights(cfg), np.random.default_rng(4)
    one, two, other = (small.example(rng, 12) for _ in range(3))
    problem, values = losses.Problem(cfg, LOSS), []
    for second in (two, other):
        rows = small.pack([[one, second]], 24)
        read = losses.read_rows(problem, params, rows, None)
        context = jax.tree.map(lambda a: a[:, 0], read.context)
        field = losses.chunk_velocity(problem, params, context, read.visible[0, 0], rows.action_valid[0, 0])
        values.append(field(jnp.ones((6, 32)), jnp.float32(0.3)))
    np.testing.assert_array_equal(*values)


def test_the_released_average_counts_padded_steps_and_the_papers_does_not():
    cfg = small.model()
    params, rng = small.weights(cfg), np.random.default_rng(5)
    rows = small.pack([[small.example(rng, 12, steps=3)]], 16)
    values = [
        float(graded(cfg, dataclasses.replace(FIXED, average=name))(
            params, rows, losses.totals(rows), None)[0][1]["loss/flow"])
        for name in ("released", "paper")
    ]  # fmt: skip
    np.testing.assert_allclose(values[0], values[1] * 3 / 6, rtol=1e-5)


def test_the_draws_of_a_row_depend_on_its_global_number_alone():
    cfg = small.model()
    params, rng = small.weights(cfg), np.random.default_rng(6)
    one, two = small.example(rng, 12), small.example(rng, 12)
    loss = dataclasses.replace(LOSS, dropout=0.3)
    both, second = small.pack([[one], [two]], 16), small.pack([[two]], 16, first_row=1)
    over, key = losses.totals(both), jax.random.key(7)
    first = small.pack([[one]], 16)
    f = graded(cfg, loss)
    (whole, _), _ = f(params, both, over, key)
    parts = sum(f(params, rows, over, key)[0][0] for rows in (first, second))
    np.testing.assert_allclose(whole, parts, rtol=1e-6)
    assert f(params, small.pack([[two]], 16, first_row=5), over, key)[0][0] != f(params, second, over, key)[0][0]


def test_noise_on_codes_replaces_inputs_inside_spans_and_leaves_other_tokens():
    cfg = small.model()
    rows = small.pack([[small.example(np.random.default_rng(8), 12)]], 400)
    tokens = np.where(np.arange(400) % 2, 45, 60)[None].astype(np.int32)
    rows = rows._replace(tokens=tokens, segments=np.zeros_like(tokens))
    np.testing.assert_array_equal(losses.noisy_codes(cfg, 1.0, rows, jax.random.key(0))[0], tokens)  # no span
    tokens[0, 0] = cfg.tokens.depth.start
    rows = rows._replace(tokens=tokens)
    noisy, sums = losses.noisy_codes(cfg, 0.5, rows, jax.random.key(0))
    noisy = np.asarray(noisy)
    np.testing.assert_array_equal(noisy[0, ::2], tokens[0, ::2])
    codes = noisy[0, 1::2]
    assert ((codes >= 43) & (codes < 59)).all()
    assert 0.3 < (codes != 45).mean() < 0.65
    assert sums["sum/codes"] == codes.size and sums["sum/noise/replaced"] >= (codes != 45).sum()
    tokens[0, 200] = cfg.tokens.depth.end
    noisy, _ = losses.noisy_codes(cfg, 1.0, rows, jax.random.key(0))
    np.testing.assert_array_equal(noisy[0, 200:], tokens[0, 200:])


def test_the_chunked_head_equals_a_plain_cross_entropy():
    rng = np.random.default_rng(9)
    x, w = rng.normal(size=(3, 21, 8)).astype(np.float32), rng.normal(size=(8, 30)).astype(np.float32)
    targets = rng.integers(0, 30, (3, 21)).astype(np.int32)
    weights = (rng.uniform(size=(3, 21)) * (rng.uniform(size=(3, 21)) < 0.4)).astype(np.float32)
    weights[2] = 0
    targets[weights == 0] = 10_000  # image tokens have no logit

    def plain(w, x):
        values = x @ w
        normaliser = jax.nn.logsumexp(values, axis=-1)
        picked = jnp.take_along_axis(values, np.where(weights > 0, targets, 0)[..., None], axis=-1)[..., 0]
        return jnp.sum(weights * (normaliser - picked + 0.1 * normaliser**2))

    method = head.Method(lambda w, x, _: x @ w, 0.1, 4)

    def chunked(w, x):
        return head.language_loss(method, w, x, head.Targets(targets, weights))[0]

    expected, found = (jax.jit(jax.value_and_grad(f, (0, 1)))(w, x) for f in (plain, chunked))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), found, expected)


def test_a_fresh_expert_starts_at_the_variance_of_the_target():
    cfg = small.model()
    params, rng = small.weights(cfg), np.random.default_rng(10)
    for name in ("final", "times"):
        params["expert"][name] = jax.tree.map(np.zeros_like, params["expert"][name])
    rows = small.pack([[small.example(rng, 12)] for _ in range(4)], 16)
    loss = dataclasses.replace(LOSS, num_samples=200)
    (_, metrics), _ = graded(cfg, loss)(params, rows, losses.totals(rows), None)
    channels = rows.channel_valid[:, 0, None]
    actions = rows.actions[:, 0]
    expected = 1 + (actions**2 * channels).sum() / (channels.sum() * actions.shape[1])
    np.testing.assert_allclose(metrics["loss/flow"], expected, rtol=0.03)


def test_dropout_of_low_rank_changes_follows_the_row():
    cfg, rng = small.model(), np.random.default_rng(11)
    _, words = molmoact2.abstract(cfg)
    chosen = r"^llm/blocks/(q|v|down)$|^llm/head/kernel$|^vit/(patches/patch|blocks/(q|up))$|^connector/(k|gate)$"
    attached = lora.attach(small.weights(cfg), words, lora.LoRAConfig(chosen, 4, dropout=0.3), jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(
        lambda p, x: 0.1 * rng.normal(size=x.shape).astype(np.float32) if str(p[-1]) == ".up" else x, attached
    )
    both = small.pack([[small.example(rng, 14)], [small.example(rng, 11)]], 32)
    rows = [jax.tree.map(lambda a: a[i : i + 1], both) for i in range(2)]  # noqa: B023
    over, f = losses.totals(both), graded(cfg, LOSS)
    (value, _), grads = f(params, both, over, jax.random.key(7))
    parts = [f(params, row, over, jax.random.key(7)) for row in rows]
    np.testing.assert_allclose(sum(part[0][0] for part in parts), value, rtol=1e-5)
    close(jax.tree.map(lambda a, b: a + b, parts[0][1], parts[1][1]), grads, 1e-5)
    other = f(params, both, over, jax.random.key(8))[0][1]["loss/language"]
    assert abs(other - f(params, both, over, jax.random.key(7))[0][1]["loss/language"]) > 1e-4
