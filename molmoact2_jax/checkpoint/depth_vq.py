"""Weights of the depth VQ-VAE as safetensors under their released names.

MolmoAct publishes them as a pickle, which this library never opens. Convert it once, where PyTorch is installed:

    import torch
    from safetensors.torch import save_file

    weights = torch.load("vae-final.pt", map_location="cpu", weights_only=True)["weights"]
    save_file({k.removeprefix("module."): v.contiguous() for k, v in weights.items()}, "depth_vq.safetensors")
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from molmoact2_jax.checkpoint.safetensors_io import Reader
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
    file = pathlib.Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file, expected the depth codec as safetensors.")
    if file.suffix != ".safetensors":
        raise ValueError(f"{file}: expected a .safetensors file. {__name__} says how to convert the released .pt file.")
    reader = Reader(file)
    cfg = _sizes(file, reader.shapes)
    _check(file, depth_vq.shapes(cfg), reader.shapes)
    params = {name: jnp.asarray(reader.read(name), jnp.float32) for name in reader.shapes}
    fresh = {EMA_SIZE: jnp.ones(cfg.num_codes), EMA_SUM: params[CODEBOOK]}
    return cfg, fresh | params


def save(params: Params, path: str | os.PathLike[str]) -> None:
    """Writes a codec under the released names, in one rename; PyTorch loads it with `strict=True`."""
    file = pathlib.Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_name(f"{file.name}.incomplete")
    safetensors.numpy.save_file({name: np.asarray(value) for name, value in params.items()}, unfinished)
    unfinished.rename(file)


def _sizes(file: pathlib.Path, shapes: Mapping[str, tuple[int, ...]]) -> DepthVQConfig:
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


def _check(file: pathlib.Path, expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    missing = sorted(expected.keys() - found.keys() - {EMA_SIZE, EMA_SUM})
    unexpected = sorted(found.keys() - expected.keys())
    misshapen = [f"{n} {found[n]} for {s}" for n, s in expected.items() if found.get(n, s) != s]
    if missing or unexpected or misshapen:
        raise ValueError(f"{file}: missing {missing}, unexpected {unexpected}, misshapen {misshapen}, expected none.")
