import dataclasses
import itertools
import json
import math
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from molmoact2_jax import config
from molmoact2_jax.checkpoint import config_write, hf, rules
from molmoact2_jax.models import molmoact2
from tests.train import small

TENSORS = "model.safetensors"


def write(directory, cfg, tensors):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config_write.to_released(cfg)))
    safetensors.numpy.save_file(tensors, directory / TENSORS)
    return directory


def stored(directory):
    found = {}
    for path in directory.glob("*.safetensors"):
        found |= safetensors.numpy.load_file(path)
    return found


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (tensor.dtype, tensor.shape), name
        assert ours[name].tobytes() == tensor.tobytes(), name


def trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope="module")
def tiny(golden):
    return stored(golden / "tiny")


def test_the_released_sizes_are_those_of_the_release():
    shapes = hf.released_shapes(config.preset("4b"))
    assert len(shapes) == 1295
    assert sum(map(math.prod, shapes.values())) == 5_442_196_272
    gated = hf.released_shapes(dataclasses.replace(config.preset("4b"), gate="per_layer"))
    assert len(gated) == 1367
    assert sum(map(math.prod, gated.values())) == 5_442_233_172


def test_the_preset_names_the_tensors_of_its_checkpoint(tiny):
    assert hf.released_shapes(config.preset("tiny")) == {name: tensor.shape for name, tensor in tiny.items()}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=["float32", "bfloat16"])
def test_export_after_import_is_bit_equal_with_side_files_and_rotary_buffer(golden, tiny, tmp_path, dtype):
    source = tmp_path / "source"
    shutil.copytree(golden / "tiny", source)
    safetensors.numpy.save_file({name: tensor.astype(dtype) for name, tensor in tiny.items()}, source / TENSORS)
    hf.export(*hf.load(source), tmp_path / "out", side_files=source)
    same(stored(tmp_path / "out"), stored(source))
    for path in source.rglob("*.json"):
        if path.name != "golden.json":
            assert (tmp_path / "out" / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_export_without_a_source_computes_the_rotary_buffer_and_the_configuration(golden, tiny, tmp_path):
    cfg, params = hf.load(golden / "tiny")
    hf.export(cfg, params, tmp_path)
    same(stored(tmp_path), tiny)
    again, back = hf.load(tmp_path)
    assert again == cfg
    trees_equal(back, params)


def test_shards_with_an_index_load_back_equal(golden, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(hf, "SHARD_BYTES", 1_000_000)
    cfg, params = hf.load(golden / "tiny")
    hf.export(cfg, params, tmp_path)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 3
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tiny.values())
    same(stored(tmp_path), tiny)
    trees_equal(hf.load(tmp_path)[1], params)


@pytest.mark.parametrize("size", [100, 1000])
def test_reading_in_pieces_changes_nothing(golden, monkeypatch, size):
    whole = hf.load(golden / "tiny")[1]
    monkeypatch.setattr(hf, "CHUNK_BYTES", size)
    trees_equal(hf.load(golden / "tiny")[1], whole)


def test_names_with_one_more_leading_model_load(golden, tiny, tmp_path):
    source = write(tmp_path, config.preset("tiny"), {f"model.{name}": tensor for name, tensor in tiny.items()})
    trees_equal(hf.load(source)[1], hf.load(golden / "tiny")[1])


def vlm(**changes):
    return dataclasses.replace(config.preset("tiny"), expert=None, **changes)


def test_a_model_without_expert_loads_as_a_vision_language_model(golden, tiny, tmp_path):
    tensors = {name: tensor for name, tensor in tiny.items() if "action_expert" not in name}
    cfg, params = hf.load(write(tmp_path, vlm(), tensors))
    assert cfg.expert is None
    whole = hf.load(golden / "tiny")[1]
    trees_equal(params, {name: whole[name] for name in ("vit", "connector", "llm")})


def native(tiny, cfg):
    """Renames by hand: the table of the specification."""
    t, out = tiny, {"lm_head.weight": tiny["lm_head.weight"]}
    wte, text, vision = "model.transformer.wte.", "model.language_model.", "model.vision_backbone."
    out[f"{text}embed_tokens.weight"] = np.concatenate([t[f"{wte}embedding"], t[f"{wte}new_embedding"]])
    out[f"{text}norm.weight"] = t["model.transformer.ln_f.weight"]
    q, k = cfg.llm.num_heads * cfg.llm.head_dim, cfg.llm.kv_width
    for i in range(cfg.llm.depth):
        old, new = f"model.transformer.blocks.{i}.", f"{text}layers.{i}."
        rows = np.split(t[f"{old}self_attn.att_proj.weight"], [q, q + k])
        out |= {f"{new}self_attn.{c}_proj.weight": part for c, part in zip("qkv", rows, strict=True)}
        up, gate = np.split(t[f"{old}mlp.ff_proj.weight"], 2)
        out |= {f"{new}mlp.up_proj.weight": up, f"{new}mlp.gate_proj.weight": gate}
        for a, b in (("self_attn.attn_out", "self_attn.o_proj"), ("mlp.ff_out", "mlp.down_proj"),
                     ("attn_norm", "input_layernorm"), ("ff_norm", "post_attention_layernorm"),
                     ("self_attn.q_norm", "self_attn.q_norm"), ("self_attn.k_norm", "self_attn.k_norm")):  # fmt: skip
            out[f"{new}{b}.weight"] = t[f"{old}{a}.weight"]
    names = {"image_vit.transformer.resblocks": "vision_tower.layers", "image_vit": "vision_tower",
             "feed_forward.w1": "mlp.fc1", "feed_forward.w2": "mlp.fc2", "attention_norm": "layer_norm1",
             "ffn_norm": "layer_norm2", "image_projector.w1": "image_projector.gate_proj",
             "image_projector.w2": "image_projector.down_proj", "image_projector.w3": "image_projector.up_proj",
             **{f"attention.w{c}": f"self_attn.{c}_proj" for c in "qkvo"},
             **{f"image_pooling_2d.w{c}": f"image_pooling_2d.{c}_proj" for c in "qkvo"}}  # fmt: skip
    for name in (name for name in tiny if name.startswith(vision)):
        new = name.removeprefix(vision)
        for a, b in names.items():
            new = new.replace(a, b)
        head = "model." if new.startswith("vision_tower") else "model.multi_modal_projector."
        out[head + new] = t[name]
    return {name: np.ascontiguousarray(tensor) for name, tensor in out.items()}


def test_the_names_of_the_transformers_library_load(golden, tiny, tmp_path):
    released = config_write.to_released(vlm())
    released["vision_config"] = {**released.pop("vit_config"), "num_hidden_layers": vlm().vit.depth}
    source = write(tmp_path, vlm(), native(tiny, vlm()))
    (source / "config.json").write_text(json.dumps(released))
    cfg, params = hf.load(source)
    whole = hf.load(golden / "tiny")[1]
    trees_equal(params, {name: whole[name] for name in ("vit", "connector", "llm")})
    assert cfg.vit.taps == config.preset("tiny").vit.taps


def test_tensors_that_do_not_fit_are_listed_in_one_error(tiny, tmp_path):
    changed = dict(tiny)
    missing, misshapen = "model.transformer.ln_f.weight", "lm_head.weight"
    del changed[missing]
    changed[misshapen] = changed[misshapen][:-1]
    changed["model.stranger"] = np.zeros(3, np.float32)
    source = write(tmp_path, config.preset("tiny"), changed)
    with pytest.raises(ValueError, match="3 tensors do not fit") as caught:
        hf.load(source)
    message = str(caught.value)
    assert f"missing {missing} (64,)" in message
    assert "unexpected model.stranger (3,)" in message
    assert f"{misshapen} is (3583, 64), expected (3584, 64)" in message


def test_weights_that_no_forward_pass_reads_are_ignored(golden, tiny, tmp_path):
    unused = {"model.action_expert.state_encoder.weight": np.zeros((2, 2), np.float32)}
    source = write(tmp_path, config.preset("tiny"), {**tiny, **unused})
    trees_equal(hf.load(source)[1], hf.load(golden / "tiny")[1])


def test_a_rotary_buffer_of_another_base_is_refused(tiny, tmp_path):
    cfg = config.preset("tiny")
    other = dataclasses.replace(cfg, llm=dataclasses.replace(cfg.llm, rope_base=1e4))
    with pytest.raises(ValueError, match="not the frequencies of rope_theta 10000"):
        hf.load(write(tmp_path, other, tiny))


def test_parameters_are_cast_and_placed_leaf_by_leaf(golden):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("x",))
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    seen = {}

    def sharding(path, shape):
        seen[path] = shape
        return placed

    _, params = hf.load(golden / "tiny", jnp.bfloat16, sharding)
    assert seen["llm/blocks/q"] == (3, 64, 4, 16)
    assert all(leaf.sharding == placed and leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(params))
    whole = hf.load(golden / "tiny")[1]
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), params, whole)


@pytest.mark.parametrize(
    "change", [dict(qk_norm="olmo"), dict(qk_norm=None), dict(qkv_bias=True), dict(norm_after=True)]
)
@pytest.mark.parametrize("gate", [None, "single", "per_layer"])
def test_every_variant_of_the_network_is_exported_and_imported(tmp_path, change, gate):
    base = small.model(gate=gate)
    cfg = dataclasses.replace(base, llm=dataclasses.replace(base.llm, **change))
    params = small.weights(cfg)
    hf.export(cfg, params, tmp_path)
    assert {name: tensor.shape for name, tensor in stored(tmp_path).items()} == hf.released_shapes(cfg)
    trees_equal(hf.load(tmp_path)[1], params)


def test_every_leaf_has_exactly_one_place(golden):
    cfg = config.preset("bench")
    tensors, parts = rules.expand(rules.released(cfg), cfg)
    shapes, _ = molmoact2.abstract(cfg)
    assert sum(map(math.prod, tensors.values())) == sum(math.prod(s.shape) for s in jax.tree.leaves(shapes))
    taken = sorted((part.name, part.rows.start, part.rows.stop) for some in parts.values() for part in some)
    assert len(set(taken)) == len(taken)
    for name, shape in tensors.items():
        spans = [(start, stop) for other, start, stop in taken if other == name]
        assert spans[0][0] == 0
        assert spans[-1][1] == shape[0]
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


def test_weights_of_another_tree_are_not_exported(golden, tmp_path):
    cfg, params = hf.load(golden / "tiny")
    del params["llm"]["head"]["norm"]
    with pytest.raises(ValueError, match=r"export: parameters differ from the model in llm/head/norm.*Merge LoRA"):
        hf.export(cfg, params, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_a_conditioning_that_the_release_lacks_is_not_exported(tmp_path):
    base = small.model()
    cfg = dataclasses.replace(base, expert=dataclasses.replace(base.expert, conditioning="hidden"))
    with pytest.raises(ValueError, match="conditioning is 'hidden', expected 'kv'"):
        hf.export(cfg, small.weights(cfg), tmp_path)
    assert not (tmp_path / "config.json").exists()
