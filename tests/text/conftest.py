"""Golden checkpoints as the text tests read them: ids and processor settings from the released JSON files."""

import dataclasses
import json
import types

import numpy as np
import pytest

from molmoact2_jax import config
from molmoact2_jax.text import tokenizer

ARCHIVES = ("tiny", "tiny_think", "tiny_think_random")
RELEASED = {
    "image_col": "image_col_id",
    "image_patch": "image_patch_id",
    "image_low": "image_low_res_id",
    "num_actions": "num_action_tokens",
    "num_depths": "num_depth_tokens",
    "num_states": "num_state_tokens",
    "action_first": "action_token_start_id",
    "depth_first": "depth_token_start_id",
    "state_first": "state_token_start_id",
}


@pytest.fixture(scope="session", params=ARCHIVES)
def archive(request, golden):
    """One golden checkpoint: directory, cases, arrays, ids, tokenizer."""
    directory = golden / request.param
    released = json.loads((directory / "config.json").read_text())
    names = [field.name for field in dataclasses.fields(config.TokenIds)]
    ids = config.TokenIds(**{name: released[RELEASED.get(name, f"{name}_token_id")] for name in names})
    return types.SimpleNamespace(
        directory=directory,
        cases=json.loads((directory / "golden.json").read_text())["cases"],
        stats=json.loads((directory / "norm_stats.json").read_text())["metadata_by_tag"],
        arrays=np.load(directory / "golden.npz"),
        ids=ids,
        settings=config.ProcessorConfig(image_size=70, max_crops=4, overlap_margins=(1, 1)),
        tokenizer=tokenizer.Tokenizer.load(directory),
    )
