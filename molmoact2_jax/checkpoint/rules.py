"""Where each tensor of a released checkpoint lives in our tree: one rule per tensor, used in both directions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import jax
import numpy as np

from molmoact2_jax.config import ModelConfig
from molmoact2_jax.models import molmoact2
from molmoact2_jax.nn import paths

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One released tensor (or one per layer, with `{i}` in its name) and the leaves that are its row blocks.

    Attributes:
      name: released name.
      leaves: our paths; their rows follow each other in the tensor.
      inputs: number of leading input axes of each leaf, whose transposed matrix is stored; None: stored as it is;
        0: stored with an axis of size 1 in front.
      flat: stored as one axis, without a split into heads; with `inputs` None.
    """

    name: str
    leaves: tuple[str, ...]
    inputs: int | None = 1
    flat: bool = False


def _linear(name: str, leaf: str, *more: str, inputs: int = 1, bias: bool = False) -> Iterator[Rule]:
    leaves = (leaf, *more)
    yield Rule(f"{name}.weight", leaves, inputs)
    if bias:
        yield Rule(f"{name}.bias", tuple(f"{leaf}_bias" for leaf in leaves), None, flat=True)


def _vit(root: str = "model.vision_backbone.image_vit") -> Iterator[Rule]:
    yield Rule(f"{root}.positional_embedding", ("vit/patches/position",), None)
    yield from _linear(f"{root}.patch_embedding", "vit/patches/patch", bias=True)
    block = f"{root}.transformer.resblocks.{{i}}"
    for letter in "qkvo":
        inputs = 2 if letter == "o" else 1
        yield from _linear(f"{block}.attention.w{letter}", f"vit/blocks/{letter}", inputs=inputs, bias=True)
    yield from _linear(f"{block}.feed_forward.w1", "vit/blocks/up", bias=True)
    yield from _linear(f"{block}.feed_forward.w2", "vit/blocks/down", bias=True)
    for name, leaf in (("attention_norm", "attn_norm"), ("ffn_norm", "mlp_norm")):
        yield Rule(f"{block}.{name}.weight", (f"vit/blocks/{leaf}",), None)
        yield Rule(f"{block}.{name}.bias", (f"vit/blocks/{leaf}_bias",), None)


def _connector(root: str = "model.vision_backbone") -> Iterator[Rule]:
    for letter in "qkvo":
        inputs = 2 if letter == "o" else 1
        yield from _linear(f"{root}.image_pooling_2d.w{letter}", f"connector/{letter}", inputs=inputs, bias=True)
    for name, leaf in (("w1", "gate"), ("w2", "down"), ("w3", "up")):
        yield from _linear(f"{root}.image_projector.{name}", f"connector/{leaf}")


def _llm(cfg: ModelConfig) -> Iterator[Rule]:
    root, leaf = "model.transformer", "llm/blocks"
    yield Rule("lm_head.weight", ("llm/head/kernel",))
    yield Rule(f"{root}.wte.embedding", ("llm/embedding/table",), None)
    yield Rule(f"{root}.wte.new_embedding", ("llm/embedding/extra",), None)
    yield Rule(f"{root}.ln_f.weight", ("llm/head/norm",), None)
    block, bias = f"{root}.blocks.{{i}}", cfg.llm.qkv_bias
    yield from _linear(f"{block}.self_attn.att_proj", f"{leaf}/q", f"{leaf}/k", f"{leaf}/v", bias=bias)
    yield from _linear(f"{block}.self_attn.attn_out", f"{leaf}/o", inputs=2)
    yield from _linear(f"{block}.mlp.ff_proj", f"{leaf}/up", f"{leaf}/gate")
    yield from _linear(f"{block}.mlp.ff_out", f"{leaf}/down")
    yield Rule(f"{block}.attn_norm.weight", (f"{leaf}/attn_norm",), None)
    yield Rule(f"{block}.ff_norm.weight", (f"{leaf}/mlp_norm",), None)
    if cfg.llm.qk_norm:
        yield Rule(f"{block}.self_attn.q_norm.weight", (f"{leaf}/q_norm",), None, flat=True)
        yield Rule(f"{block}.self_attn.k_norm.weight", (f"{leaf}/k_norm",), None, flat=True)


def _expert() -> Iterator[Rule]:
    root, leaf = "model.action_expert", "expert/blocks"
    yield from _linear(f"{root}.time_embed.1", "expert/times/first", bias=True)
    yield from _linear(f"{root}.time_embed.3", "expert/times/second", bias=True)
    yield from _linear(f"{root}.action_embed", "expert/embed/kernel", bias=True)
    yield from _linear(f"{root}.context_k_proj", "expert/context/k")
    yield from _linear(f"{root}.context_v_proj", "expert/context/v")
    block, heads = f"{root}.blocks.{{i}}", (f"{leaf}/self_q", f"{leaf}/self_k", f"{leaf}/self_v")
    yield from _linear(f"{block}.self_attn.qkv", *heads, bias=True)
    yield from _linear(f"{block}.self_attn.out_proj", f"{leaf}/self_o", inputs=2, bias=True)
    yield from _linear(f"{block}.cross_attn.q_proj", f"{leaf}/cross_q", bias=True)
    yield from _linear(f"{block}.cross_attn.out_proj", f"{leaf}/cross_o", inputs=2, bias=True)
    for name in ("up", "gate", "down"):
        yield from _linear(f"{block}.mlp.{name}_proj", f"{leaf}/{name}", bias=True)
    yield from _linear(f"{block}.modulation.linear", "expert/times/modulation", bias=True)
    yield from _linear(f"{root}.final_layer.modulation.linear", "expert/times/final", bias=True)
    yield from _linear(f"{root}.final_layer.linear", "expert/final/kernel", bias=True)


def released(cfg: ModelConfig) -> list[Rule]:
    """Returns the rules of a released checkpoint."""
    found = [*_llm(cfg), *_vit(), *_connector()]
    if cfg.expert:
        found += _expert()
    if cfg.expert and cfg.gate:
        layer = ".{i}" if cfg.gate == "per_layer" else ""
        root = f"model.action_expert_depth_gate{layer}"
        found += [Rule(f"{root}.weight", ("gate/kernel",), 0), Rule(f"{root}.bias", ("gate/bias",), 0)]
    return found


def native(cfg: ModelConfig) -> list[Rule]:
    """Returns the rules of the same vision-language model under the names of the transformers library."""
    root = "model.language_model"
    found = [
        Rule("lm_head.weight", ("llm/head/kernel",)),
        Rule(f"{root}.embed_tokens.weight", ("llm/embedding/table", "llm/embedding/extra"), None),
        Rule(f"{root}.norm.weight", ("llm/head/norm",), None),
    ]
    block, leaf = f"{root}.layers.{{i}}", "llm/blocks"
    for letter in "qkvo":
        bias, inputs = cfg.llm.qkv_bias and letter != "o", 2 if letter == "o" else 1
        found += _linear(f"{block}.self_attn.{letter}_proj", f"{leaf}/{letter}", inputs=inputs, bias=bias)
    found += [Rule(f"{block}.mlp.{n}_proj.weight", (f"{leaf}/{n}",)) for n in ("up", "gate", "down")]
    norms = dict(input_layernorm="attn_norm", post_attention_layernorm="mlp_norm")
    if cfg.llm.qk_norm:
        norms |= {"self_attn.q_norm": "q_norm", "self_attn.k_norm": "k_norm"}
    found += [Rule(f"{block}.{name}.weight", (f"{leaf}/{ours}",), None, flat=True) for name, ours in norms.items()]
    return found + [dataclasses.replace(rule, name=_native_vision(rule.name)) for rule in (*_vit(), *_connector())]


def _native_vision(name: str) -> str:
    for old, new in (
        ("model.vision_backbone.image_vit.transformer.resblocks", "model.vision_tower.layers"),
        ("model.vision_backbone.image_vit", "model.vision_tower"),
        ("model.vision_backbone", "model.multi_modal_projector"),
        ("attention_norm", "layer_norm1"),
        ("ffn_norm", "layer_norm2"),
        ("feed_forward.w1", "mlp.fc1"),
        ("feed_forward.w2", "mlp.fc2"),
        ("image_projector.w1", "image_projector.gate_proj"),
        ("image_projector.w2", "image_projector.down_proj"),
        ("image_projector.w3", "image_projector.up_proj"),
        *((f"attention.w{c}", f"self_attn.{c}_proj") for c in "qkvo"),
        *((f"image_pooling_2d.w{c}", f"image_pooling_2d.{c}_proj") for c in "qkvo"),
    ):
        name = name.replace(old, new)
    return name


@dataclasses.dataclass(frozen=True)
class Part:
    """Rows `rows` of a released tensor that are layer `layer` of a leaf (None: the whole leaf)."""

    name: str
    rows: slice
    layer: int | None
    rule: Rule


def expand(rules: list[Rule], cfg: ModelConfig) -> tuple[dict[str, Shape], dict[str, list[Part]]]:
    """Returns the shape of every released tensor, and for every leaf of our tree the parts it is made of."""
    shapes, _ = molmoact2.abstract(cfg)
    ours = {paths.name(path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}
    tensors: dict[str, Shape] = {}
    parts: dict[str, list[Part]] = {}
    for rule in rules:
        depth = ours[rule.leaves[0]][0] if "{i}" in rule.name else 1
        for i in range(depth):
            name, start = rule.name.format(i=i), 0
            for leaf in rule.leaves:
                shape = _stored(ours[leaf][1:] if "{i}" in rule.name else ours[leaf], rule)
                rows = slice(start, start + shape[0])
                parts.setdefault(leaf, []).append(Part(name, rows, i if "{i}" in rule.name else None, rule))
                start += shape[0]
            tensors[name] = (start, *shape[1:])
    assert parts.keys() == ours.keys(), parts.keys() ^ ours.keys()
    return tensors, parts


def _stored(shape: Shape, rule: Rule) -> Shape:
    if rule.inputs is None:
        return (math.prod(shape),) if rule.flat else shape
    if rule.inputs == 0:
        return (1, *shape)
    return (math.prod(shape[rule.inputs :]), math.prod(shape[: rule.inputs]))


def as_rows(leaf: np.ndarray, rule: Rule) -> np.ndarray:
    """Views one layer of our leaf, contiguous in memory, as rows of a released tensor, to read or to write."""
    stored = _stored(leaf.shape, rule)
    return leaf.reshape(stored[::-1]).T if rule.inputs else leaf.reshape(stored)
