"""Checkpoints that do not end the depth span right after the codes, against what the released classes do with them.

`golden/depth_close.npz` holds their tokens, codes and actions for cases 0 and 2 of `tiny_think_random` without a cache,
with the head edited as below.
"""

import json
import pathlib
import shutil

import numpy as np
import pytest
from safetensors import numpy as safetensors

from molmoact2_jax import DepthDecodeError, Observation, Policy
from molmoact2_jax.config import TokenIds

WORD = 100  # an ordinary token


def edited(source: pathlib.Path, target: pathlib.Path, ids: TokenIds, *, sign: float) -> pathlib.Path:
    """Copies a checkpoint whose channel 0 only the embeddings write, always 4, so that it can decide the next token.

    `WORD` always wins behind the codes. It writes 4 * sign into that channel: with -1 the end of the span follows it,
    with 1 `WORD` again, for ever.
    """
    shutil.copytree(source, target)
    tensors = safetensors.load_file(source / "model.safetensors")
    head, table = tensors["lm_head.weight"], tensors["model.transformer.wte.embedding"]
    head[[ids.depth.end, WORD]] = 0
    head[ids.depth.end, 0], head[WORD, 0] = -1e3, 1e3
    table[WORD, 0] = 4 * sign
    safetensors.save_file(tensors, target / "model.safetensors")
    return target


@pytest.fixture(scope="module")
def cases(golden):
    """Observation and noise by number of the case."""
    arrays = np.load(golden / "tiny_think_random" / "golden.npz")
    told = json.loads((golden / "tiny_think_random" / "golden.json").read_text())["cases"]
    found = {}
    for i in (0, 2):
        pictures = [arrays[f"case{i}/image{j}"] for j in range(told[i]["n_images"])]
        observation = Observation(pictures, told[i]["task"], arrays[f"case{i}/state"], told[i]["tag"])
        found[i] = (observation, arrays[f"case{i}/noise"][0])
    return found


@pytest.fixture(scope="module")
def policies(golden, tmp_path_factory):
    """Policies whose span ends a word later, and never."""
    source = golden / "tiny_think_random"
    ids = Policy.from_pretrained(source, dtype="float32", unroll=False).cfg.tokens
    directory = tmp_path_factory.mktemp("edited")
    made = {name: edited(source, directory / name, ids, sign=sign) for name, sign in (("later", -1), ("never", 1))}
    return {name: Policy.from_pretrained(path, dtype="float32", unroll=False) for name, path in made.items()}


@pytest.mark.parametrize("number", [0, 2])
def test_a_span_that_ends_later_is_decoded_on_as_released(golden, policies, cases, number):
    recorded, (observation, noise) = np.load(golden / "depth_close.npz"), cases[number]
    policy = policies["later"]
    [out] = policy.predict_actions([observation], depth="adaptive", noise=[noise])
    np.testing.assert_array_equal(out.token_ids, recorded[f"later/case{number}/tokens"])
    np.testing.assert_array_equal(out.depth_codes, recorded[f"later/case{number}/codes"])
    actions = recorded[f"later/case{number}/actions"]
    np.testing.assert_allclose(out.actions, actions, rtol=0, atol=1e-5 * np.abs(actions).max())
    assert out.depth_cache is not None
    closing = 1 + len(out.token_ids) - 101  # the codes once more, then a token at a time
    [again] = policy.predict_actions([observation], depth="adaptive", noise=[noise], depth_caches=[out.depth_cache])
    assert again.changed == 0
    assert again.passes == 1 + closing


def test_warming_leaves_nothing_to_compile_for_a_span_that_ends_later(policies, cases):
    policy, (observation, _) = Policy(policies["later"].host, policies["later"].params, unroll=False), cases[0]
    length = len(policy.host.tokenizer.encode(observation.task))
    policy.warm(observation.norm_tag, max_task_tokens=length, depth="adaptive")
    before = policy.compilations
    policy.predict_actions([observation], depth="adaptive")
    assert policy.compilations == before


def test_a_span_that_never_ends_is_an_error(policies, cases):
    observation, _ = cases[0]
    with pytest.raises(DepthDecodeError, match="no end within 30 tokens"):
        policies["never"].predict_actions([observation], depth="adaptive")


def test_free_decoding_without_a_single_code_is_an_error_as_released(policies, cases):
    observation, _ = cases[0]
    with pytest.raises(DepthDecodeError, match="no codes among 2 tokens"):
        policies["later"].predict_actions([observation], depth="full")
