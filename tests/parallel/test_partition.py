import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from molmoact2_jax import config
from molmoact2_jax.models import molmoact2
from molmoact2_jax.parallel import mesh, partition


def grid(data=1, fsdp=1, tensor=1):
    return mesh.abstract(mesh.MeshConfig(data, fsdp, tensor), data * fsdp * tensor)


def place(shape, words, **sizes):
    return partition.spec(shape, tuple(words.split()), grid(**sizes))


RELEASED = {  # shapes of the 4b model that cover every combination of words
    "llm/blocks/q": ((36, 2560, 32, 128), "layers embed heads head_dim"),
    "llm/blocks/k": ((36, 2560, 8, 128), "layers embed kv_heads head_dim"),
    "llm/blocks/o": ((36, 32, 128, 2560), "layers heads head_dim embed"),
    "llm/blocks/down": ((36, 9728, 2560), "layers mlp embed"),
    "llm/embedding": ((154624, 2560), "vocab embed"),
    "llm/extra_embedding": ((128, 2560), "extra_vocab embed"),
    "llm/head": ((2560, 154624), "embed vocab"),
    "vit/position": ((729, 1152), "patches embed"),
    "vit/blocks/up": ((25, 1152, 4304), "layers embed mlp"),
    "vit/blocks/q": ((25, 1152, 16, 72), "layers embed heads head_dim"),
    "connector/q": ((2304, 16, 72), "features heads head_dim"),
    "connector/down": ((9728, 2560), "mlp out"),
    "expert/modulation": ((36, 768, 9, 768), "layers embed shifts embed"),
    "expert/context_k": ((1024, 8, 96), "context_embed heads head_dim"),
    "expert/time": ((256, 768), "time embed"),
}


def test_words_become_mesh_axes():
    assert place((36, 2560, 32, 128), "layers embed heads head_dim", fsdp=4, tensor=2) == P(
        None, "fsdp", "tensor", None
    )
    assert place((154624, 2560), "vocab embed", fsdp=4, tensor=2) == P("tensor", "fsdp")
    assert place((8, 16, 4, 8), "layers batch kv_heads head_dim", data=2, fsdp=4, tensor=2) == P(
        None, ("data", "fsdp"), "tensor", None
    )


def test_axes_of_size_one_are_left_out():
    assert place((8, 6), "embed mlp", fsdp=2) == P("fsdp", None)
    assert place((8, 6), "embed mlp") == P(None, None)


def test_a_mesh_axis_that_does_not_divide_is_dropped():
    assert place((6, 3), "embed heads", fsdp=4, tensor=2) == P(None, None)


def test_a_mesh_axis_is_used_once_per_array():
    assert place((4, 8, 3, 8), "layers embed shifts embed", fsdp=2) == P(None, "fsdp", None, None)


def test_a_large_array_falls_back_to_another_dimension_but_never_to_layers():
    assert place((512, 1023, 2048), "layers embed mlp", fsdp=8) == P(None, None, "fsdp")
    assert place((512, 1023, 2048), "layers embed mlp", fsdp=8, tensor=4) == P(None, None, ("tensor", "fsdp"))
    assert place((4096, 1023), "layers embed", fsdp=8) == P(None, None)


def test_a_small_array_stays_whole_rather_than_cut_oddly():
    assert place((7, 64), "embed patches", fsdp=8) == P(None, None)


@pytest.mark.parametrize(
    "sizes", [dict(fsdp=8), dict(fsdp=64), dict(fsdp=16, tensor=4), dict(data=4, fsdp=8, tensor=2)]
)
def test_every_large_weight_of_the_released_sizes_is_sharded_over_fsdp(sizes):
    for name, (shape, words) in RELEASED.items():
        used = place(shape, words, **sizes)
        assert "fsdp" in jax.tree.leaves(tuple(used)), (name, used)


@pytest.mark.parametrize("sizes", [dict(fsdp=8), dict(fsdp=64), dict(fsdp=16, tensor=4), dict(fsdp=64, tensor=4)])
def test_no_large_weight_of_the_released_model_is_whole_on_a_device(sizes):
    shapes, words = molmoact2.abstract(dataclasses.replace(config.preset("4b"), gate="per_layer"))
    assert partition.unsharded(shapes, partition.shardings(shapes, words, grid(**sizes))) == []


def test_words_must_name_every_dimension():
    with pytest.raises(ValueError, match="expected one word per dimension"):
        place((2, 3), "embed", fsdp=2)


def real():
    built = mesh.build(mesh.MeshConfig(fsdp=4, tensor=2))
    words = {"llm": {"q": ("embed", "heads", "head_dim"), "norm": ("embed",)}, "expert": {"q": ("embed", "mlp")}}
    shapes = {
        "llm": {"q": jnp.zeros((8, 4, 3)), "norm": jnp.zeros(8)},
        "expert": {"q": jnp.zeros((16, 6))},
    }
    return built, shapes, partition.shardings(shapes, words, built)


def test_a_state_follows_the_weights_it_copies():
    built, shapes, placed = real()
    state = {"mu": shapes, "count": jnp.zeros(()), "ema": {"expert": shapes["expert"]}, "q": jnp.zeros((8, 4, 3))}
    followed = partition.follow(state, shapes, placed, built)
    assert followed["mu"] == placed and followed["ema"]["expert"] == placed["expert"]
    assert followed["count"].is_fully_replicated and followed["q"].is_fully_replicated


def test_initialisation_under_the_shardings_gives_the_same_values_everywhere():
    built, shapes, placed = real()

    def init(key):
        return jax.tree.map(lambda x: jax.random.normal(key, x.shape), shapes)

    sharded = jax.jit(init, out_shardings=placed)(jax.random.key(0))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-6)  # compiled apart, the same draw may round apart
    jax.tree.map(close, sharded, jax.jit(init)(jax.random.key(0)))
    assert sharded["llm"]["q"].addressable_shards[0].data.shape == (2, 2, 3)
    wanted = partition.targets(shapes, placed)["llm"]["q"]
    assert wanted.sharding == placed["llm"]["q"] and wanted.shape == (8, 4, 3)
    assert built.shape["fsdp"] == 4


def test_the_table_names_what_is_whole():
    _, shapes, placed = real()
    assert partition.unsharded(shapes, placed, limit=1) == []
    whole = jax.tree.map(lambda s: NamedSharding(s.mesh, P()), placed)
    assert partition.unsharded(shapes, whole, limit=65) == ["expert/q", "llm/q"]
    assert "llm/q  (8, 4, 3)" in partition.table(shapes, placed) and "per device in all" in partition.table(
        shapes, placed
    )


def test_activation_constraints_of_the_model_reach_the_mesh():
    import flax.linen as nn

    built = mesh.build(mesh.MeshConfig(fsdp=4, tensor=2))

    @jax.jit
    def run(x):
        return nn.with_logical_constraint(x * 2, ("batch", "tokens", "mlp"))

    with partition.activate(built):
        y = run(jnp.ones((8, 3, 4)))
    assert y.sharding.shard_shape(y.shape) == (2, 3, 2)
