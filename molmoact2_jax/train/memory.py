"""Bytes that a training step needs on each device: a model from sizes alone, and the compiler's own numbers.

The model counts what is there at the peak, in the backward pass through the tower with the largest working set.
Weights, moments, gradients and batch follow from their shardings; activations follow from what a policy of
rematerialisation keeps. Comparing it with the compiler is a test.
"""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from molmoact2_jax.config import ConnectorConfig, ExpertConfig, LLMConfig, ModelConfig, ViTConfig
from molmoact2_jax.nn.lora import LoRA, LoRAConfig
from molmoact2_jax.parallel import partition
from molmoact2_jax.train import flops, losses, setup, step
from molmoact2_jax.train.recipe import DataConfig, TrainConfig

MODES = ("full", "lora", "expert")
ADAPTED = LoRAConfig(  # training.md 1.6: every projection of decoder, head and vision
    r"^(llm/blocks/(q|k|v|o|gate|up|down)|llm/head/kernel|vit/patches/patch"
    r"|vit/blocks/(q|k|v|o|up|down)|connector/(q|k|v|o|gate|up|down))$"
)
HEADROOM = 0.92  # share of a device's memory that a program may plan with; the rest is the runtime's
F32 = 4  # bytes: softmax, gradients of masters, loss
KINDS = ("parameters", "moments", "gradients", "compute copies", "saved activations", "working set", "logits", "batch")


class Tower(NamedTuple):
    """Elements that one row of the batch leaves in one block, on one device.

    carry: the residual stream; products: results of projections that the backward pass reads; everything: those and
    norms, rotations, activations; scores: attention weights; layers: how many blocks there are.
    """

    layers: int
    carry: int
    products: int
    everything: int
    scores: int


def work(cfg: ModelConfig, data: DataConfig, samples: int) -> flops.Work:
    """Returns what a row of a run holds; a sixth of its tokens have loss (an answer of about 350 in 2100)."""
    tokens = max(data.tokens, data.vlm_tokens) if data.vlm_root else data.tokens
    return flops.Work(
        tokens=tokens, crops=data.crops, image_tokens=data.crops * (-(-cfg.vit.grid // 2)) ** 2,
        loss_tokens=tokens // 6, chunks=data.chunks if cfg.expert and data.robots else 0, samples=samples,
        horizon=cfg.max_horizon,
    )  # fmt: skip


def rows(cfg: ModelConfig, data: DataConfig, num_rows: int) -> losses.Rows:
    """Returns the shapes of a batch."""
    one = work(cfg, data, 1)
    b, t, c, a, n = num_rows, one.tokens, one.chunks, one.horizon, cfg.action_dim
    window = 9 if data.vlm_root else 4  # patches of an image token; video has 3 x 3
    size = cfg.vit.image_size
    per_token = dict.fromkeys(("tokens", "positions", "segments", "targets", "styles"), ((b, t), jnp.int32))
    shapes: dict[str, tuple[tuple[int, ...], Any]] = per_token | dict(
        weights=((b, t), jnp.float32), crops=((b, one.crops, size, size, 3), jnp.uint8),
        pooling=((b, one.image_tokens, window), jnp.int32), actions=((b, c, a, n), jnp.float32),
        action_valid=((b, c, a), jnp.bool_), channel_valid=((b, c, n), jnp.bool_), chunk_example=((b, c), jnp.int32),
        row=((b,), jnp.int32),
    )  # fmt: skip
    made: dict[str, Any] = {name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()}
    return losses.Rows(**made)


def _vit(cfg: ViTConfig, row: flops.Work, tensor: int) -> Tower:
    n, inner, mlp = row.crops * cfg.num_positions, cfg.num_heads * cfg.head_dim // tensor, cfg.mlp_width // tensor
    products = n * (3 * inner + cfg.width + mlp)
    scores = n * cfg.num_positions * cfg.num_heads // tensor
    return Tower(cfg.depth, n * cfg.width, products, products + n * (6 * cfg.width + 3 * inner + 2 * mlp), scores)


def _llm(cfg: LLMConfig, row: flops.Work, tensor: int) -> Tower:
    n, inner, mlp = row.tokens, cfg.num_heads * cfg.head_dim // tensor, cfg.mlp_width // tensor
    kv = max(1, cfg.num_kv_heads // tensor) * cfg.head_dim
    products = n * (inner + 2 * kv + cfg.width + 2 * mlp)
    everything = products + n * (6 * cfg.width + 4 * inner + 3 * kv + 2 * mlp)
    return Tower(cfg.depth, n * cfg.width, products, everything, n * n * cfg.num_heads // tensor)


def _expert(cfg: ExpertConfig, row: flops.Work, tensor: int) -> Tower:
    n, inner, mlp = row.chunks * row.samples * row.horizon, cfg.width // tensor, cfg.mlp_width // tensor
    products = n * (4 * inner + 2 * cfg.width + 2 * mlp)
    everything = products + n * (12 * cfg.width + 6 * inner + 2 * mlp)
    scores = n * (row.tokens + row.horizon) * cfg.num_heads // tensor
    return Tower(cfg.depth, n * cfg.width, products, everything, scores)


def _connector(cfg: ConnectorConfig, row: flops.Work, tensor: int) -> int:
    """Elements of the connector, which is never recomputed: windows, their projections, the gated layer."""
    inner = cfg.num_heads * cfg.head_dim // tensor
    window = 4 * (cfg.feature_width + 2 * inner)
    return row.image_tokens * (window + 2 * cfg.feature_width + 3 * inner + cfg.width + 4 * cfg.mlp_width // tensor)


def model(made: setup.Setup) -> dict[str, int]:
    """Estimates the bytes of a training step on one device, by kind (`KINDS`), at the peak.

    For each tower of L blocks, with b rows at a time, activations of s bytes, and per row and block the elements of
    `Tower`:

        saved    b L (s carry + s products with "dots", or + s everything + 8 scores with "none")
        working  b (s everything / 2 + 13 scores)        the largest tower's
                 + b (s + 16) inputs                     of a decoder block's low-rank changes, where they have dropout

    because three arrays of attention weights in float32 and a mask of bytes meet in the backward pass, with what the
    attention half of a block makes; with s < 4 a copy of the weights in s bytes joins both. A tower without a gradient
    saves nothing. Keys, values, the expert's context and their gradients stay for all layers. The compute copy is half
    of the masters: their cast to bfloat16, or in float32 on a CPU second layouts. Where fsdp shards, a layer is
    gathered while the one before is used, the head is whole, and its gradient is summed before it is scattered.
    """
    mesh, cfg, recipe = made.mesh, made.model, made.recipe
    tensor = mesh.shape["tensor"]
    num_rows = recipe.batch_size // recipe.accumulation // (mesh.shape["data"] * mesh.shape["fsdp"])
    size, row = jnp.dtype(recipe.dtype).itemsize, work(cfg, recipe.data, recipe.loss.num_samples)
    train = shard_bytes(made.state.train, made.placed.train)
    head = cfg.llm.width * cfg.llm.vocab_size // tensor
    sharded = mesh.shape["fsdp"] > 1
    saved, working = _activations(made, row, tensor, size)
    gathered = 2 * size * (head + _layer(made) // tensor) if sharded else 0
    return {
        "parameters": train + shard_bytes(made.state.frozen, made.placed.frozen),
        "moments": shard_bytes(made.state.optimizer, made.placed.optimizer),
        "gradients": train * (2 if recipe.accumulation > 1 else 1),
        "compute copies": train // 2 + gathered,
        "saved activations": num_rows * saved,
        "working set": num_rows * (working + (16 + size) * _dropped(made, row)),
        "logits": 2 * F32 * num_rows * recipe.loss.head_chunk * cfg.llm.vocab_size // tensor + F32 * head * sharded,
        "batch": sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(rows(cfg, recipe.data, num_rows))),
    }


def _activations(made: setup.Setup, row: flops.Work, tensor: int, size: int) -> tuple[int, int]:
    """Returns bytes of a row that are saved, and those of the largest working set."""
    cfg, loss = made.model, made.recipe.loss
    moving = {name for name, passes in flops.passes(made.shapes, made.trained).items() if passes > 2}
    towers = {"vit": (_vit(cfg.vit, row, tensor), loss.remat_vit)} if row.crops else {}
    towers["llm"] = (_llm(cfg.llm, row, tensor), loss.remat_llm)
    kept = size * _connector(cfg.connector, row, tensor) if "connector" in moving else 0
    if cfg.expert and row.chunks:
        towers["expert"] = (_expert(cfg.expert, row, tensor), loss.remat_expert)
        kept += size * cfg.llm.depth * row.tokens * (4 * cfg.llm.kv_width + 2 * cfg.expert.width) // tensor
    copy = size if size < F32 else 0
    for name, (tower, policy) in towers.items():
        if name in moving:
            kept += tower.layers * size * tower.carry
            more = {"full": 0, "dots": size * tower.products, "none": size * tower.everything}[policy]
            kept += tower.layers * (more + (2 * F32 + copy) * tower.scores * (policy == "none"))
    scores = {name: (3 if name in moving else 2) * F32 + 1 + copy for name in towers}
    return kept, max(size * t.everything // 2 + scores[name] * t.scores for name, (t, _) in towers.items())


def _dropped(made: setup.Setup, row: flops.Work) -> int:
    """Elements of a decoder block's inputs that are drawn random numbers for: counters, bits and what they make."""
    if made.recipe.lora is None or not made.recipe.lora.dropout:
        return 0
    nodes = jax.tree.leaves(made.shapes["llm"]["blocks"], is_leaf=lambda node: isinstance(node, LoRA))
    return row.tokens * sum(node.down.shape[-2] for node in nodes if isinstance(node, LoRA))


def _layer(made: setup.Setup) -> int:
    """Elements of the decoder's weights in one layer."""
    blocks = jax.tree.leaves(made.shapes["llm"]["blocks"])
    return sum(x.size for x in blocks) // made.model.llm.depth


def shard_bytes(shapes: Any, placed: Any) -> int:
    """Returns the bytes of a tree on each device."""
    pairs = zip(jax.tree.leaves(shapes), jax.tree.leaves(placed), strict=True)
    return sum(math.prod(s.shard_shape(x.shape)) * x.dtype.itemsize for x, s in pairs)


def mode(recipe: TrainConfig, name: str) -> TrainConfig:
    """Returns a run with another choice of what is trained: one of `MODES`."""
    if name not in MODES:
        raise ValueError(f"memory: mode {name!r}, expected one of {MODES}. Choose one of them.")
    if name == "lora":
        return dataclasses.replace(recipe, lora=recipe.lora or ADAPTED, frozen=())
    frozen = (r"^(vit|connector|llm)/",) if name == "expert" else ()
    insulated = dataclasses.replace(recipe.loss, insulate=recipe.loss.insulate or name == "expert")
    return dataclasses.replace(recipe, lora=None, frozen=frozen, loss=insulated)


def largest_batch(made: setup.Setup, limit: float, most: int = 256) -> int:
    """Returns the most rows per device, a power of two, that fit into `limit` bytes; 0 where one is too many."""
    shards = made.mesh.shape["data"] * made.mesh.shape["fsdp"]
    best, count = 0, 1
    while count <= most:
        recipe = dataclasses.replace(made.recipe, batch_size=count * shards, accumulation=1)
        if sum(model(dataclasses.replace(made, recipe=recipe)).values()) > HEADROOM * limit:
            break
        best, count = count, 2 * count
    return best


def flops_per_step(made: setup.Setup) -> float:
    """Returns the model FLOPs of a step over all devices (`flops.step`)."""
    row = work(made.model, made.recipe.data, made.recipe.loss.num_samples)
    return flops.step(made.model, row, made.recipe.batch_size, flops.passes(made.shapes, made.trained))["total"]


def lower(made: setup.Setup, platform: str) -> Any:
    """Lowers the training step for devices that need not exist; nothing is allocated."""
    batch = rows(made.model, made.recipe.data, made.recipe.batch_size)
    with partition.activate(made.mesh):
        return (
            step.compile_step(made.cfg, made.placed, made.mesh)
            .trace(made.state, batch)
            .lower(lowering_platforms=(platform,))
        )


class Compiled(NamedTuple):
    """The compiler's numbers: bytes of arguments, of temporaries and at the peak, on one device; seconds it took."""

    arguments: int
    temporaries: int
    total: int
    seconds: float


def compiled(made: setup.Setup) -> tuple[Any, Compiled]:
    """Compiles the training step for the devices of its mesh; returns the program, and what it needs."""
    batch = rows(made.model, made.recipe.data, made.recipe.batch_size)
    begin = time.perf_counter()
    with partition.activate(made.mesh):
        program = step.compile_step(made.cfg, made.placed, made.mesh).lower(made.state, batch).compile()
    found = program.memory_analysis()
    kept = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return program, Compiled(
        found.argument_size_in_bytes, found.temp_size_in_bytes, kept + found.temp_size_in_bytes,
        time.perf_counter() - begin,
    )  # fmt: skip
