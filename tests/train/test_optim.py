import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy

from molmoact2_jax import config
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import paths
from molmoact2_jax.train import optim

CFG = optim.OptimConfig()
STEPS = 24_000


def tree(scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
        "vit": {"blocks": {"q": draw(2, 4, 3), "attn_norm": draw(2, 4)}, "patches": {"position": draw(5, 4)}},
        "connector": {"q": draw(4, 3)},
        "llm": {
            "embedding": {"table": draw(6, 4), "extra": draw(2, 4)},
            "blocks": {"q": draw(2, 4, 3), "attn_norm": draw(2, 4), "q_norm": draw(2, 3)},
            "head": {"norm": draw(4), "kernel": draw(4, 6)},
        },
        "expert": {"blocks": {"up": draw(2, 4, 3)}},
        "gate": {"kernel": draw(2, 4)},
    }


def flat(params):
    return dict(zip(paths.names(params), jax.tree.leaves(params), strict=True))


def run(grads, cfg=CFG, params=None, num_steps=STEPS):
    """Takes one step per gradient tree from `params`, and returns weights, state and metrics."""
    params = tree() if params is None else params
    state = optim.init(cfg, params)
    for g in grads:
        params, state, metrics = optim.update(cfg, num_steps, g, state, params)
    return params, state, metrics


def test_the_rate_rises_over_the_warm_up_and_falls_to_a_tenth():
    at = lambda s: float(optim.schedule(CFG, STEPS, s))  # noqa: E731
    np.testing.assert_allclose([at(1), at(100), at(200)], [1 / 200, 0.5, 1.0], rtol=1e-6)
    middle = 0.1 + 0.45 * (1 + np.cos(np.pi * (5000 - 200) / (STEPS - 200)))
    np.testing.assert_allclose([at(5000), at(STEPS), at(STEPS + 99)], [middle, 0.1, 0.1], rtol=1e-5)


def test_the_first_update_uses_the_first_step_of_the_warm_up():
    _, state, metrics = run([tree(seed=1)])
    assert state.step == 1
    np.testing.assert_allclose(metrics["rate/action_expert"], 5e-5 / 200, rtol=1e-5)
    np.testing.assert_allclose(metrics["rate/connector"], 5e-6 / 200, rtol=1e-5)


def test_every_parameter_of_the_model_is_in_one_group():
    shapes, _ = molmoact2.abstract(config.preset("tiny"))
    names = flat(optim.group_names(shapes))
    assert set(names.values()) == {"vit", "connector", "llm", "action_expert"}
    assert names["llm/embedding/extra"] == "connector" and names["llm/embedding/table"] == "llm"


def test_a_path_outside_all_groups_is_refused():
    with pytest.raises(ValueError, match=r"audio/q is in the groups \[\]"):
        optim.group_names({"audio": {"q": jnp.zeros(2)}})


def test_each_group_is_clipped_on_its_own():
    grads = tree(scale=1e-3) | {"expert": {"blocks": {"up": jnp.full((2, 4, 3), 100.0)}}}
    norms = optim.group_norms(grads)
    clipped = flat(optim.clip(grads, norms, 1.0))
    np.testing.assert_array_equal(clipped["llm/blocks/q"], grads["llm"]["blocks"]["q"])
    both = np.sqrt(sum((np.asarray(clipped[n]) ** 2).sum() for n in ("expert/blocks/up", "gate/kernel")))
    np.testing.assert_allclose(both, 1.0, rtol=1e-5)


def test_adam_matches_its_definition_over_several_steps():
    cfg = optim.OptimConfig(warmup_steps=1, clip_norm=1e9)
    grads = [tree(seed=s) for s in (1, 2, 3)]
    moved, _, _ = run(grads, cfg)
    p, m, v = (np.float64(x) for x in (tree()["llm"]["blocks"]["q"], 0, 0))
    for i, g in enumerate(np.float64(g["llm"]["blocks"]["q"]) for g in grads):
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
        rate = 1e-5 * float(optim.schedule(cfg, STEPS, i + 1))
        p = p - rate * (m / (1 - 0.9 ** (i + 1))) / (np.sqrt(v / (1 - 0.95 ** (i + 1))) + 1e-6)
    start = np.float64(tree()["llm"]["blocks"]["q"])
    np.testing.assert_allclose(moved["llm"]["blocks"]["q"] - start, p - start, atol=3e-7)


RELEASED = {  # one weight of each kind in the recorded step, and a path of ours in the same group
    "model.transformer.blocks.0.self_attn.att_proj.weight": ("llm", "llm/blocks/q"),
    "model.transformer.blocks.1.mlp.ff_proj.weight": ("llm", "llm/blocks/up"),
    "lm_head.weight": ("llm", "llm/head/kernel"),
    "model.vision_backbone.image_pooling_2d.wq.weight": ("connector", "connector/q"),
    "model.action_expert.context_k_proj.weight": ("action_expert", "expert/context/k"),
    "model.action_expert.blocks.1.modulation.linear.weight": ("action_expert", "expert/times/modulation"),
    "model.action_expert.action_embed.weight": ("action_expert", "expert/embed/kernel"),
}


def nested(leaves):
    root = {}
    for path, leaf in leaves.items():
        node = root
        for part in path.split("/")[:-1]:
            node = node.setdefault(part, {})
        node[path.split("/")[-1]] = jnp.asarray(leaf)
    return root


@pytest.mark.parametrize("archive", ["tiny", "tiny_think"])
def test_the_first_step_from_recorded_gradients_is_the_released_one(golden, archive, monkeypatch):
    recorded = np.load(golden / archive / "golden.npz")
    stored = numpy.load_file(golden / archive / "model.safetensors")
    norms = {group: recorded[f"train/adamw/norm/{group}"] for group in optim.GROUPS}
    monkeypatch.setattr(optim, "group_norms", lambda grads: norms)  # of the whole model, of which parts are recorded

    rows = {"lm_head.weight": recorded["train/head_rows"]}
    weights, grads, wanted = {}, {}, {}
    for name, (group, path) in RELEASED.items():
        # The archive holds gradients after the step clipped them in place; those of the head are a copy from before.
        factor = 1.0 if name in rows else min(1.0, 1 / (norms[group] + 1e-6))
        wanted[path] = recorded[f"train/adamw/delta/{name}"]
        grads[path] = recorded[f"train/noki/grad/{name}"] / np.float32(factor)
        weights[path] = stored[name][rows.get(name, slice(len(wanted[path])))]
    moved = flat(run([nested(grads)], optim.OptimConfig(warmup_steps=1), nested(weights))[0])
    for path, want in wanted.items():
        rounding = np.spacing(np.abs(weights[path]))  # the recorded step is a difference of rounded float32 weights
        error = np.abs(np.float64(moved[path]) - weights[path] - want)
        assert (error <= 1e-4 * np.abs(want).max() + rounding).all(), (path, error.max(), np.abs(want).max())


def test_weight_decay_spares_embeddings_and_norms():
    zero = jax.tree.map(jnp.zeros_like, tree())
    moved, _, _ = run([zero], optim.OptimConfig(warmup_steps=1, weight_decay=0.01))
    decayed = {name for name, after in flat(moved).items() if (after != flat(tree())[name]).any()}
    assert decayed == {
        "vit/blocks/q", "connector/q", "llm/blocks/q", "llm/blocks/q_norm", "llm/head/kernel", "expert/blocks/up",
        "gate/kernel",
    }  # fmt: skip
    change = np.float64(moved["llm"]["blocks"]["q"]) - np.float64(tree()["llm"]["blocks"]["q"])
    np.testing.assert_allclose(change, -1e-5 * 0.01 * tree()["llm"]["blocks"]["q"], atol=6e-8)


def test_without_weight_decay_a_zero_gradient_moves_nothing():
    moved, _, _ = run([jax.tree.map(jnp.zeros_like, tree())])
    jax.tree.map(np.testing.assert_array_equal, moved, tree())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_non_finite_group_skips_the_step_everywhere_and_is_counted(bad):
    cfg = optim.OptimConfig(ema=0.9)
    broken = tree(seed=2)
    broken["connector"]["q"] = broken["connector"]["q"].at[0, 0].set(bad)
    before, old, _ = run([tree(seed=1)], cfg)
    after, new, metrics = run([tree(seed=1), broken], cfg)
    jax.tree.map(np.testing.assert_array_equal, after, before)
    jax.tree.map(np.testing.assert_array_equal, (new.adam, new.ema), (old.adam, old.ema))
    assert (new.step, new.skipped, metrics["skipped_steps"]) == (2, 1, 1)


def test_the_average_follows_the_weights():
    cfg = optim.OptimConfig(ema=0.75, warmup_steps=1)
    moved, state, _ = run([tree(seed=1)], cfg)
    want = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, tree(), moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), state.ema, want)


def test_frozen_weights_have_neither_gradient_nor_moments():
    trained = optim.trainable(tree(), ["^vit/", "^llm/blocks/"], "lm_head")
    train, rest = optim.split(tree(), trained)
    assert set(paths.names(train)) == {
        "connector/q", "llm/embedding/extra", "llm/head/norm", "llm/head/kernel", "expert/blocks/up", "gate/kernel",
    }  # fmt: skip
    state = optim.init(CFG, train)
    assert set(paths.names(state.adam.mu)) == set(paths.names(train))
    jax.tree.map(np.testing.assert_array_equal, optim.join(train, rest), tree())
    assert set(paths.names(jax.grad(lambda t: jnp.sum(optim.join(t, rest)["connector"]["q"]))(train))) == set(
        paths.names(train)
    )


@pytest.mark.parametrize(
    ("mode", "trained"),
    [
        ("lm_head", {"llm/embedding/extra", "llm/head/norm", "llm/head/kernel"}),
        ("added_tokens", {"llm/embedding/table", "llm/head/norm", "llm/head/kernel"}),
        ("none", set()),
        ("ln_f", {"llm/head/norm"}),
        ("wte", {"llm/embedding/table", "llm/embedding/extra"}),
        ("all", {"llm/embedding/table", "llm/embedding/extra", "llm/head/norm", "llm/head/kernel"}),
    ],
)
def test_embedding_options_train_their_part_of_the_tables(mode, trained):
    marks = flat(optim.trainable(tree(), (), mode))
    assert {n for n, t in marks.items() if t and n.startswith(("llm/embedding", "llm/head"))} == trained
    assert marks["llm/blocks/q"] and marks["expert/blocks/up"]


def test_only_the_rows_of_added_tokens_move():
    grads = optim.keep_rows(tree(seed=1), (3, 5))
    moved, _, _ = run([grads])
    changed = (moved["llm"]["embedding"]["table"] != tree()["llm"]["embedding"]["table"]).any(axis=1)
    np.testing.assert_array_equal(changed, [False, False, False, True, True, False])
    assert (moved["llm"]["blocks"]["q"] != tree()["llm"]["blocks"]["q"]).any()


@pytest.mark.parametrize(
    ("frozen", "embedding", "message"),
    [
        (["^audio/"], "all", r"frozen: '\^audio/' matches no parameter"),
        (["."], "all", "freezes every parameter"),
        ([], "head", "embedding: 'head', expected one of"),
    ],
)
def test_bad_settings_of_what_is_trained_are_refused(frozen, embedding, message):
    with pytest.raises(ValueError, match=message):
        optim.trainable(tree(), frozen, embedding)


def test_rates_for_unknown_groups_and_overlong_warm_ups_are_refused():
    with pytest.raises(ValueError, match=r"optimizer\.peak_rates: groups"):
        optim.check(optim.OptimConfig(peak_rates={"expert": 1e-4}), STEPS)
    with pytest.raises(ValueError, match=r"optimizer\.warmup_steps: 200 with 100 steps"):
        optim.check(CFG, 100)
    optim.check(CFG, 201)
