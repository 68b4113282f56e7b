"""Weights of Depth Anything V2 as safetensors under their released names.

They are published as a pickle, which this library never opens. Convert it once, where PyTorch is installed:

    import torch
    from safetensors.torch import save_file

    weights = torch.load("depth_anything_v2_vitb.pth", map_location="cpu", weights_only=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, "depth_anything_v2_vitb.safetensors")
"""

from __future__ import annotations

import math
import os
import pathlib

from molmoact2_jax.checkpoint import flat
from molmoact2_jax.models import depth_anything
from molmoact2_jax.models.depth_anything import DepthAnythingConfig, Params

HEAD_DIM = 64  # of every DINOv2


def load(path: str | os.PathLike[str]) -> tuple[DepthAnythingConfig, Params]:
    """Loads a network; its sizes follow from the tensors (ViT-S, B or L).

    Args:
      path: one safetensors file.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another kind of file; or tensors that are missing, unexpected or misshapen, all listed.
    """
    file, reader = flat.open_file(path, "Depth Anything V2", __name__)
    cfg = _sizes(file, reader.shapes)
    return cfg, flat.read(file, reader, depth_anything.shapes(cfg), (depth_anything.UNUSED,))


def _sizes(file: pathlib.Path, shapes: flat.Shapes) -> DepthAnythingConfig:
    depth = sum(name.startswith("pretrained.blocks.") and name.endswith(".norm1.weight") for name in shapes)
    try:
        _, positions, width = shapes["pretrained.pos_embed"]
        features, channels = zip(*(shapes[f"depth_head.scratch.layer{i}_rn.weight"][:2] for i in (1, 2, 3, 4)))
        taps, head = depth_anything.TAPS[depth], shapes["depth_head.scratch.output_conv2.0.weight"][0]
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{file}: {depth} blocks, and {error} is absent or misshapen, expected Depth Anything V2 (ViT-S, B or L)."
        ) from error
    return DepthAnythingConfig(
        width=width,
        depth=depth,
        num_heads=width // HEAD_DIM,
        taps=taps,
        channels=channels,
        features=features[0],
        head_features=head,
        grid=math.isqrt(positions - 1),
    )
