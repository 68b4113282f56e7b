import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from molmoact2_jax import config, presets
from molmoact2_jax.checkpoint import orbax, runs
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import lora, paths
from molmoact2_jax.parallel import mesh as meshes
from molmoact2_jax.parallel import partition
from molmoact2_jax.train import optim, recipe, setup, stages, vocabulary

KEY = jax.random.key(3)
BASE = 60  # tokens of the base vocabulary
FAMILIES = dict(state=8, action=12)


def tokens(vocab, **families):
    """Ids in released order behind the base tokens; the image tokens lie behind the table."""
    at, ids = BASE + 4, {}
    for name, count in families.items():
        parts = [
            f"{name}_{part}" for part in ("output", "start", "end", "first") if (name, part) != ("state", "output")
        ]
        ids |= {part: at + i for i, part in enumerate(parts)} | {f"num_{name}s": count}
        at += len(parts) - 1 + count
    images = {name: vocab + i for i, name in enumerate(vocabulary.IMAGES)}
    return config.TokenIds(bos=1, eos=1, pad=0, **images, **ids)


def model(vocab=64, families=None, **changes):
    base = presets.preset("tiny")
    sizes = dict(width=32, depth=2, mlp_width=48, vocab_size=vocab, extra_vocab_size=16)
    expert = dataclasses.replace(base.expert, width=24, depth=2, num_heads=2, mlp_width=32, time_width=8)
    return dataclasses.replace(
        base,
        vit=dataclasses.replace(base.vit, depth=2, taps=(1, 0), declared_depth=4, image_size=28, num_positions=4),
        connector=dataclasses.replace(base.connector, mlp_width=32, out_width=32),
        llm=dataclasses.replace(base.llm, **sizes),
        **{"expert": expert, "tokens": tokens(vocab, **(families or {})), **changes},
    )


VLM = model(expert=None)  # 64 rows: 60 base tokens, 4 unused
POLICY = model(112, FAMILIES)  # 60 base, 4 + 10 + 15 added, 23 of padding


SPEAKER = dataclasses.replace(POLICY, expert=None)  # the same without an expert, whose initialiser compiles slowly


def weights(cfg, seed=0):
    rng = np.random.default_rng(seed)
    shapes, _ = molmoact2.abstract(cfg)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(3, 2, s.shape), jnp.float32), shapes)


def leaves(tree):
    return {paths.name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_what_fits_passes_through_and_nothing_is_noted():
    source = weights(POLICY)
    entered, notes = stages.enter(POLICY, POLICY, source, KEY)
    assert all(a is b for a, b in zip(jax.tree.leaves(entered), jax.tree.leaves(source), strict=True)) and not notes


@pytest.mark.parametrize(("name", "axis"), [("llm/embedding/table", 0), ("llm/head/kernel", 1)])
def test_base_rows_are_kept_and_added_ones_drawn_around_them(name, axis):
    source = weights(VLM)
    entered, notes = stages.enter(SPEAKER, VLM, source, KEY)
    old, new = (np.moveaxis(np.asarray(leaves(tree)[name]), axis, 0) for tree in (source, entered))
    np.testing.assert_array_equal(new[:BASE], old[:BASE])
    drawn = new[BASE:]
    assert drawn.shape == (52, 32) and len(np.unique(drawn, axis=0)) == 52
    standard = (drawn - old[:BASE].mean(axis=0)) / old[:BASE].std(axis=0)
    assert abs(standard.mean()) < 0.1 and abs(standard.std() - 1) < 0.1
    assert any(note.startswith(name) and "10 state tokens" in note and "60" in note for note in notes)


def test_rows_are_drawn_per_feature():
    source = weights(VLM)
    scales = jnp.arange(32, dtype=jnp.float32) * 100
    source["llm"]["embedding"]["table"] = source["llm"]["embedding"]["table"] * 1e-3 + scales
    entered, _ = stages.enter(SPEAKER, VLM, source, KEY)
    added = np.asarray(entered["llm"]["embedding"]["table"])[BASE:]
    np.testing.assert_allclose(added, np.broadcast_to(scales, added.shape), atol=0.1)


def test_a_family_follows_its_ids_and_only_the_new_one_is_drawn():
    think = model(160, FAMILIES | dict(depth=6))
    source = weights(POLICY)
    entered, notes = stages.enter(think, POLICY, source, KEY)
    old, new = (np.asarray(tree["llm"]["embedding"]["table"]) for tree in (source, entered))
    ids, padding = think.tokens, vocabulary.added(think)[1]
    np.testing.assert_array_equal(new[: ids.depth_output], old[: ids.depth_output])
    assert not np.isin(new[ids.depth_output : padding], old).any()
    end = vocabulary.added(POLICY)[1]
    np.testing.assert_array_equal(new[padding : padding + 23], old[end:])  # padding behind it moves along
    assert not any("action tokens" in note for note in notes) and any("9 depth tokens" in note for note in notes)


def test_depth_tokens_may_take_the_place_of_padding_in_a_table_of_the_same_size():
    think = model(112, FAMILIES | dict(depth=6))
    entered, notes = stages.enter(think, POLICY, weights(POLICY), KEY)
    assert not np.isin(entered["llm"]["head"]["kernel"][:, 89:98], weights(POLICY)["llm"]["head"]["kernel"]).any()
    assert len([note for note in notes if "9 depth tokens" in note]) == 2


def test_image_tokens_follow_their_ids():
    moved = dataclasses.replace(POLICY.tokens, frame_start=POLICY.tokens.frame_end, frame_end=POLICY.tokens.frame_start)
    source = weights(POLICY)
    entered, _ = stages.enter(dataclasses.replace(POLICY, tokens=moved), POLICY, source, KEY)
    old, new = (np.asarray(tree["llm"]["embedding"]["extra"]) for tree in (source, entered))
    np.testing.assert_array_equal(new, old[[0, 1, 2, 3, 4, 5, 7, 6, *range(8, 16)]])


def test_a_vlm_becomes_a_policy_whose_velocity_is_zero():
    cfg = dataclasses.replace(POLICY, gate="per_layer")
    entered, notes = stages.enter(cfg, VLM, weights(VLM), KEY)
    assert {note.split(":")[0] for note in notes} >= {"expert", "gate"}
    assert not np.any(entered["expert"]["final"]["kernel"]) and not np.any(entered["expert"]["times"]["modulation"])
    np.testing.assert_array_equal(entered["gate"]["bias"], np.full(2, cfg.gate_bias))
    assert np.any(entered["expert"]["blocks"]["self_q"])


def test_wider_actions_keep_the_channels_there_are():
    wide = dataclasses.replace(POLICY, expert=dataclasses.replace(POLICY.expert, action_dim=40))
    source = weights(POLICY)
    entered, notes = stages.enter(wide, POLICY, source, KEY)
    for name, axis in (("embed/kernel", 0), ("final/kernel", 1), ("final/kernel_bias", 0)):
        old, new = (np.moveaxis(np.asarray(leaves(t["expert"])[name]), axis, 0) for t in (source, entered))
        assert new.shape[0] == 40
        np.testing.assert_array_equal(new[:32], old)
        assert np.isfinite(new[32:]).all() and np.ptp(new[32:]) > 0
        assert f"expert/{name}: 8 action channels drawn around the 32 that the checkpoint has" in notes


def test_without_a_checkpoint_everything_is_initialised():
    entered, notes = stages.enter(VLM, None, {}, KEY)
    assert [note.split(":")[0] for note in notes] == ["connector", "llm", "vit"] and "no checkpoint" in notes[0]
    assert jax.tree.structure(entered) == jax.tree.structure(weights(VLM))


def test_a_checkpoint_of_another_model_is_one_error_that_lists_every_leaf():
    other = dataclasses.replace(POLICY, llm=dataclasses.replace(POLICY.llm, mlp_width=40, qk_norm=None), gate="single")
    with pytest.raises(ValueError) as caught:
        stages.compare(POLICY, other)
    for name in ("up", "gate", "down"):
        assert f"llm/blocks/{name} is" in str(caught.value)
    assert "llm/blocks/q_norm (2, 16) is not in the checkpoint" in str(caught.value)
    assert "gate/bias () is not in the model" in str(caught.value)


@pytest.mark.parametrize(
    "before",
    [
        model(112, dict(state=8, action=11)),
        model(112, FAMILIES | dict(depth=6)),
        dataclasses.replace(
            POLICY, tokens=dataclasses.replace(POLICY.tokens, state_start=63, state_end=64, state_first=65)
        ),
        model(BASE - 4, expert=None),
    ],
    ids=["another count", "a family too many", "another base", "too few rows"],
)
def test_another_vocabulary_is_refused(before):
    with pytest.raises(ValueError, match="base tokens"):
        stages.compare(POLICY, before)


def test_new_leaves_are_made_in_shards():
    mesh = meshes.build(meshes.MeshConfig(fsdp=4, tensor=2))
    place = lambda shapes, words: partition.shardings(shapes, words, mesh)  # noqa: E731
    shapes, words = molmoact2.abstract(SPEAKER)
    entered, _ = stages.enter(SPEAKER, VLM, weights(VLM), KEY, place)
    for name in ("llm/embedding/table", "llm/head/kernel"):
        leaf, sharding = leaves(entered)[name], leaves(place(shapes, words))[name]
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim) and not sharding.is_fully_replicated
    alone, _ = stages.enter(SPEAKER, VLM, weights(VLM), KEY)
    jax.tree.map(np.testing.assert_array_equal, entered["llm"], alone["llm"])  # shards do not change what is drawn


def write_run(directory, cfg, params, adapters=None):
    table = dict(run_dir="x", steps=9, batch_size=8, model={}, lora=adapters)
    (directory / "side").mkdir(parents=True)
    runs.describe(directory, recipe.to_json(recipe.build(table)), cfg, directory)
    with orbax.Checkpoints(directory / runs.CHECKPOINTS) as checkpoints:
        checkpoints.save(1, orbax.Saved(params, optim.init(optim.OptimConfig(), {}), {}, {}))


def run_of(directory, init_from, **changes):
    table = dict(run_dir=str(directory), steps=999, batch_size=8, model=dict(init_from=str(init_from)), **changes)
    return setup.prepare(recipe.build(table | dict(mesh=dict(fsdp=4, tensor=2))))


def test_a_run_of_ours_enters_the_next_in_shards(tmp_path):
    source = weights(POLICY)
    write_run(tmp_path / "first", POLICY, source)
    state = setup.initial_state(run_of(tmp_path / "second", tmp_path / "first", frozen=(r"^vit/",)))
    joined = optim.join(state.train, state.frozen)
    assert {x.dtype for x in jax.tree.leaves(joined["vit"])} == {jnp.dtype(jnp.bfloat16)}
    for name in ("llm", "expert", "connector"):
        jax.tree.map(np.testing.assert_array_equal, joined[name], source[name])
    q = joined["llm"]["blocks"]["q"]
    assert q.sharding.shard_shape(q.shape) == (2, 8, 2, 16)


def test_low_rank_changes_of_the_source_run_are_merged(tmp_path):
    adapters = dict(targets=r"^llm/blocks/(q|down)$", rank=2, alpha=4.0)
    source, (_, words) = weights(POLICY), molmoact2.abstract(POLICY)
    changed = lora.attach(source, words, lora.LoRAConfig(**adapters), KEY)
    changed = jax.tree_util.tree_map_with_path(lambda p, x: x + 1 if paths.name(p).endswith("/up") else x, changed)
    write_run(tmp_path / "first", POLICY, changed, adapters)
    state = setup.initial_state(run_of(tmp_path / "second", tmp_path / "first"))
    expected = lora.merge(changed)
    assert np.abs(expected["llm"]["blocks"]["q"] - source["llm"]["blocks"]["q"]).max() > 0.1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), state.train, expected)


def test_insulating_a_gated_model_is_said_to_leave_its_gate_untrained(caplog):
    rates = dict(vit=1e-4, connector=1e-4, llm=1e-4, action_expert=1e-4)
    run = dict(run_dir="", steps=999, batch_size=1, loss=dict(insulate=True), optimizer=dict(peak_rates=rates))
    for gate in ("per_layer", None):
        caplog.clear()
        made = recipe.build(run | dict(model=dict(sizes="tiny", overrides=dict(gate=gate))))
        setup.prepare(made, jax.devices()[:1])
        assert ("no gradient reaches the depth gate" in caplog.text) == (gate is not None)
