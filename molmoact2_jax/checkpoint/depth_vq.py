"""Weights of the depth VQ-VAE as safetensors under their released names (`flat.save` writes them).

MolmoAct publishes them as a pickle, which this library never opens. Convert it once, where PyTorch is installed:

    import torch
    from safetensors.torch import save_file

    weights = torch.load("vae-final.pt", map_location="cpu", weights_only=True)["weights"]
    save_file({k.removeprefix("module."): v.contiguous() for k, v in weights.items()}, "depth_vq.safetensors")
"""

from __future__ import annotations

import os
import pathlib

import jax.numpy as jnp

from molmoact2_jax.checkpoint import flat
from molmoact2_jax.models import depth_vq
from molmoact2_jax.models.depth_vq import CODEBOOK, EMA_SIZE, EMA_SUM, DepthVQConfig, Params


def load(path: str | os.PathLike[str]) -> tuple[DepthVQConfig, Params]:
    """Loads a codec for maps of 320 x 320; its other sizes follow from the tensors.

    Args:
      path: one safetensors file. The moving statistics of the codebook may be absent; they then start afresh.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another kind of file; or tensors that are missing, unexpected or misshapen, all listed.
    """
    file, reader = flat.open_file(path, "the depth codec", __name__)
    cfg = _sizes(file, reader.shapes)
    params = flat.read(file, reader, depth_vq.shapes(cfg), (EMA_SIZE, EMA_SUM))
    fresh = {EMA_SIZE: jnp.ones(cfg.num_codes), EMA_SUM: params[CODEBOOK]}
    return cfg, fresh | params


def _sizes(file: pathlib.Path, shapes: flat.Shapes) -> DepthVQConfig:
    halvings = sum(name.startswith("encoder.") and shape[2:] == (4, 4) for name, shape in shapes.items())
    residuals = sum(name.startswith("encoder.") and name.endswith(".net.0.weight") for name in shapes)
    first, codebook = shapes.get("encoder.0.weight", ()), shapes.get(CODEBOOK, ())
    if not halvings or len(first) != 4 or len(codebook) != 2:
        raise ValueError(
            f"{file}: no encoder.0.weight or no {CODEBOOK}, expected a depth VQ-VAE. Its names begin with "
            f"{sorted({name.split('.')[0] for name in shapes})}."
        )
    return DepthVQConfig(width=first[0], halvings=halvings, residuals=residuals,
                         num_codes=codebook[0], code_dim=codebook[1])  # fmt: skip
