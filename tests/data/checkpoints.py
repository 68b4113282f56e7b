"""The golden checkpoints as data tests need them: encoding, statistics, codec, recorded cases."""

import json
import types

import numpy as np

from molmoact2_jax.checkpoint import config_json
from molmoact2_jax.data import norm_stats
from molmoact2_jax.data.example import Encoding
from molmoact2_jax.text import actions, tokenizer


def load(directory):
    """Reads one archive."""
    model = config_json.load(directory)
    return types.SimpleNamespace(
        encoding=Encoding(
            tokenizer.Tokenizer.load(directory), model.tokens, config_json.load_processor(directory, model.vit)
        ),
        stats=norm_stats.load(directory / "norm_stats.json"),
        codec=actions.ActionCodec.load(directory / "action_tokenizer"),
        cases=json.loads((directory / "golden.json").read_text())["cases"],
        arrays=np.load(directory / "golden.npz"),
    )
