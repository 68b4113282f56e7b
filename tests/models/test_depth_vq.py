"""The depth codec: released names, numbers of the same network in PyTorch, laws of its codebook, a round trip.

`golden/depth_vq.npz` was recorded by building the network of `io.md` 6.1 in PyTorch 2.13 (float32, CPU), loading the
weights that `released_weights` draws, and running it on the stored maps; `vectors` and `decoded` are thinned.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from molmoact2_jax.data import depth_maps, depth_scenes
from molmoact2_jax.models import depth_vq, depth_vq_train

RELEASED = depth_vq.DepthVQConfig()
SMALL = depth_vq.DepthVQConfig(size=32, width=4, halvings=3, residuals=1, num_codes=8, code_dim=16)
TRAINING = depth_vq_train.VQTraining()


def released_weights(codebook):
    rng = np.random.default_rng(11)
    params = {name: np.zeros(shape, np.float32) for name, shape in depth_vq.shapes(RELEASED).items()}
    for conv in depth_vq.convolutions(RELEASED):
        deviation = np.float32((2 / conv.fan_in) ** 0.5)
        params[f"{conv.name}.weight"] = rng.standard_normal(conv.shape, dtype=np.float32) * deviation
        params[f"{conv.name}.bias"] = rng.standard_normal(conv.outputs, dtype=np.float32) * np.float32(0.05)
    return params | {depth_vq.CODEBOOK: codebook.astype(np.float32)}


def scenes(count, size, seed):
    rng = np.random.default_rng(seed)
    maps = [depth_maps.prepare(depth_scenes.render(depth_scenes.draw(rng), size)[1], "metric") for _ in range(count)]
    return np.stack(maps)[:, :: 320 // size, :: 320 // size]


def test_names_and_shapes_are_the_released_ones():
    shapes = depth_vq.shapes(RELEASED)
    modules = {name.removesuffix(".weight") for name in shapes if name.endswith(".weight")}
    blocks = {f"{half}.{i}.net.{j}" for half, i in (("encoder", 10), ("encoder", 11), ("decoder", 2), ("decoder", 3))
              for j in (0, 2, 4)}  # fmt: skip
    plain = {f"encoder.{i}" for i in (0, 2, 4, 6, 8, 12)} | {f"decoder.{i}" for i in (0, 4, 6, 8, 10, 12, 14)}
    assert modules == blocks | plain
    assert {name.removesuffix(".bias") for name in shapes if name.endswith(".bias")} == modules
    assert shapes["_vq_vae._embedding"] == (128, 512)
    assert shapes["encoder.0.weight"] == (16, 1, 4, 4) and shapes["encoder.12.weight"] == (512, 256, 1, 1)
    assert shapes["decoder.4.weight"] == (256, 256, 4, 4) and shapes["decoder.12.weight"] == (32, 16, 4, 4)
    assert shapes["decoder.14.weight"] == (1, 16, 1, 1)


def test_numbers_are_those_of_the_same_network_in_pytorch(golden):
    archive = np.load(golden / "depth_vq.npz")
    params = released_weights(archive["codebook"])
    unit = archive["levels"].astype(np.float32) / np.float32(255)
    depth = ((unit - np.float32(0.5)) / np.float32(0.5))[..., None]
    vectors = np.asarray(depth_vq.embed(RELEASED, params, depth))[:, ::7, ::8]
    np.testing.assert_allclose(vectors, archive["vectors"], atol=1e-5 * np.abs(archive["vectors"]).max(), rtol=0)
    codes = archive["codes"].astype(np.int32)
    np.testing.assert_array_equal(depth_vq.encode(RELEASED, params, depth), codes)
    assert len(np.unique(codes)) > 100
    decoded = np.asarray(depth_vq.decode(RELEASED, jax.tree.map(jnp.asarray, params), codes))
    assert decoded.shape == (2, 320, 320)
    tolerance = 1e-5 * np.abs(archive["decoded"]).max()
    np.testing.assert_allclose(decoded[:, ::9, ::7], archive["decoded"], atol=tolerance, rtol=0)


def test_residual_blocks_start_as_the_identity():
    params = depth_vq.init(SMALL, jax.random.key(0))
    depth = jnp.asarray(np.random.default_rng(8).normal(size=(1, 32, 32, 1)), jnp.float32)
    codes = jnp.arange(16)[None] % 8
    params[depth_vq.CODEBOOK] = jax.random.normal(jax.random.key(1), (8, 16))
    other = {name: value + 1 if ".net.0." in name or ".net.2." in name else value for name, value in params.items()}
    assert sum(not np.array_equal(params[name], other[name]) for name in params) == 8
    np.testing.assert_array_equal(depth_vq.embed(SMALL, params, depth), depth_vq.embed(SMALL, other, depth))
    np.testing.assert_array_equal(depth_vq.decode(SMALL, params, codes), depth_vq.decode(SMALL, other, codes))


def test_a_code_vector_is_its_own_nearest_and_ties_take_the_lower_code():
    book = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float32)
    book[5] = book[2]
    codes = depth_vq.nearest({depth_vq.CODEBOOK: jnp.asarray(book)}, jnp.asarray(book))
    np.testing.assert_array_equal(codes, [0, 1, 2, 3, 4, 2, 6, 7])


def test_a_picture_changes_codes_only_within_the_encoders_reach():
    cfg = depth_vq.DepthVQConfig(size=64, width=2, halvings=3, residuals=0, num_codes=8, code_dim=4)
    params = depth_vq.init(cfg, jax.random.key(0))
    depth = np.random.default_rng(1).normal(size=(2, 64, 64, 1)).astype(np.float32)
    depth[1] = depth[0]
    depth[1, 32:40, 16:24] += 1
    before, after = jax.jit(lambda d: depth_vq.embed(cfg, params, d))(depth)
    rows, columns = np.nonzero(np.abs(before - after).max(axis=-1).reshape(8, 8))
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 5, 1, 3)


def test_moving_averages_converge_to_the_means_of_what_chose_each_code():
    rng = np.random.default_rng(2)
    centres = rng.normal(size=(8, 16)).astype(np.float32) * 5
    params = {
        depth_vq.CODEBOOK: jnp.asarray(centres),
        depth_vq.EMA_SIZE: jnp.ones(8),
        depth_vq.EMA_SUM: jnp.asarray(centres + 1),
    }
    z = jnp.asarray(np.repeat(centres, 10, axis=0))
    codes = jnp.repeat(jnp.arange(8), 10)
    update = jax.jit(lambda p: depth_vq_train.update_codebook(TRAINING, p, z, codes, jax.random.key(0)))
    for _ in range(800):
        params, dead = update(params)
        assert not dead.any()
    np.testing.assert_allclose(params[depth_vq.CODEBOOK], centres, atol=0.01)
    np.testing.assert_allclose(params[depth_vq.EMA_SIZE], np.full(8, 10), rtol=0.01)


def test_one_step_of_the_averages_is_the_written_formula():
    size, total = jnp.array([4.0, 8.0]), jnp.array([[4.0], [16.0]])
    params = {depth_vq.CODEBOOK: total / size[:, None], depth_vq.EMA_SIZE: size, depth_vq.EMA_SUM: total}
    z = jnp.array([[3.0], [5.0], [1.0]])
    new, _ = depth_vq_train.update_codebook(TRAINING, params, z, jnp.array([1, 1, 0]), jax.random.key(0))
    np.testing.assert_allclose(new[depth_vq.EMA_SIZE], [0.99 * 4 + 0.01 * 1, 0.99 * 8 + 0.01 * 2], rtol=1e-6)
    expected = [[(0.99 * 4 + 0.01) / 3.97], [(0.99 * 16 + 0.08) / 7.94]]
    np.testing.assert_allclose(new[depth_vq.CODEBOOK], expected, rtol=1e-6)


def test_only_dead_codes_restart_at_vectors_of_the_batch_and_die_again_after_the_patience():
    z = jnp.asarray(np.random.default_rng(3).normal(size=(80, 16)), jnp.float32)
    book = jnp.concatenate([z[:6], jnp.full((2, 16), 1e3)])
    size = jnp.array([10.0] * 6 + [1e-3] * 2)
    params = {depth_vq.CODEBOOK: book, depth_vq.EMA_SIZE: size, depth_vq.EMA_SUM: book * size[:, None]}
    codes = jnp.arange(80) % 6
    alive = []
    for index in range(TRAINING.patience + 3):
        params, dead = depth_vq_train.update_codebook(TRAINING, params, z, codes, jax.random.key(index))
        assert not dead[:6].any()
        alive.append(not dead[6:].any())
        distance = jnp.linalg.norm(params[depth_vq.CODEBOOK][6:, None] - z, axis=-1).min(axis=1)
        np.testing.assert_allclose(distance, 0, atol=1e-4)
    assert alive == [False, *[True] * TRAINING.patience, False, True]


def test_training_lowers_the_loss_fills_the_codebook_and_repeats_itself():
    maps = scenes(24, 32, seed=4)
    rng = np.random.default_rng(5)
    batches = [maps[rng.integers(0, 24, 8)] for _ in range(100)]
    optimizer = optax.adam(3e-3)

    def run():
        states, history = zip(*depth_vq_train.fit(SMALL, TRAINING, optimizer, batches, seed=0), strict=True)
        return states[-1].params, history

    params, history = run()
    first, last = (np.mean([h["reconstruction"] for h in part]) for part in (history[:10], history[-10:]))
    assert last < 0.5 * first
    assert history[0]["restarted"] >= 7  # the first batch fills the empty codebook
    usage = depth_vq_train.measure(SMALL, params, [maps])
    assert usage.used > 0.5 and 1 < usage.perplexity <= 8 and usage.error < first
    jax.tree.map(np.testing.assert_array_equal, params, run()[0])


def test_gradients_reach_the_encoder_through_the_codes_and_never_the_codebook():
    params = depth_vq.init(SMALL, jax.random.key(0))
    params[depth_vq.CODEBOOK] = jax.random.normal(jax.random.key(1), (8, 16))
    depth = jnp.asarray(scenes(2, 32, seed=6))
    no_commitment = depth_vq_train.VQTraining(commitment=0.0)
    gradient = jax.jit(jax.grad(lambda p: depth_vq_train.losses(SMALL, no_commitment, p, params, depth)[0]))(params)
    assert np.abs(gradient["encoder.0.weight"]).max() > 0
    np.testing.assert_array_equal(gradient[depth_vq.CODEBOOK], np.zeros((8, 16)))


def test_averaging_cells_is_exact_on_a_grid_of_flat_cells():
    flat = np.random.default_rng(7).normal(size=(2, 10, 10)).repeat(32, axis=1).repeat(32, axis=2)
    np.testing.assert_allclose(depth_vq_train.average_cells(flat[..., None], 10), flat, atol=1e-12)
