"""What a program returned, turned into actions, codes and words. Host side."""

from __future__ import annotations

import numpy as np

from molmoact2_jax.config import DepthIds
from molmoact2_jax.data import normalize
from molmoact2_jax.models import decode
from molmoact2_jax.serve import observe, program
from molmoact2_jax.serve.records import Action, DepthCache, DepthDecodeError, Options, Prepared
from molmoact2_jax.text import actions


def action(host: observe.Host, one: Prepared, outcome: program.Outcome, index: int, chosen: Options) -> Action:
    """Builds the result of row `index` of a batch.

    Raises:
      DepthDecodeError: the depth span did not end, or free decoding put no code into it.
      ActionDecodeError: an answer without end; with `strict`, also tokens that are not a chunk.
    """
    tokens, codes, passes = _depth(host, outcome, index)
    if chosen.mode == "continuous":
        trajectory, robot = np.asarray(outcome.trajectory)[index], np.asarray(outcome.actions)[index]
    else:
        answer = _ended(outcome.answer, index, actions.ActionDecodeError, "action answer")
        tokens = np.concatenate([tokens, answer])
        trajectory, robot = _decoded(host, one, answer, strict=chosen.strict)
    steps = chosen.n_action_steps or one.tag.n_action_steps or host.horizon(one.tag)
    cache = None
    if codes is not None and len(codes) == host.cfg.num_depth_codes:
        cache = DepthCache(one.first.copy(), codes)  # a camera may write its next picture into the same array
    return Action(
        actions=np.ascontiguousarray(robot[:steps, : host.channels(one.tag)]),
        trajectory=trajectory,
        token_ids=tokens if tokens.size else None,
        depth_codes=codes,
        depth_cache=cache,
        passes=passes,
        changed_cells=None if codes is None else one.changed,
    )


def text(host: observe.Host, outcome: program.Outcome) -> str:
    """Returns the words of a free answer, without its end token."""
    assert outcome.answer is not None
    ids = outcome.answer.tokens[0, : outcome.answer.num_tokens[0]].tolist()
    return host.tokenizer.decode([i for i in ids if i != host.cfg.tokens.eos])


def _ended(generated: decode.Generated | None, index: int, error: type[ValueError], what: str) -> np.ndarray:
    assert generated is not None
    if not generated.ended[index]:
        raise error(
            f"{what}: no end within {generated.tokens.shape[1]} tokens. The observation is far from the training data, "
            "or the checkpoint was not trained for this mode."
        )
    return np.asarray(generated.tokens, np.int64)[index, : generated.num_tokens[index]]


def _depth(host: observe.Host, outcome: program.Outcome, index: int) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Returns the ids of the depth span, its codes, and how many passes they took."""
    free = np.zeros(0, np.int64)
    if outcome.depth is not None:
        free = _ended(outcome.depth, index, DepthDecodeError, "depth span")
    if outcome.codes is None and outcome.depth is None:
        return free, None, 0
    ids = host.cfg.tokens.depth
    if outcome.codes is None:
        return free, _free_codes(ids, free), len(free)
    codes = np.asarray(outcome.codes.codes)[index]
    end = free if free.size else [ids.end]
    span = np.concatenate([[ids.start], codes + ids.first, end]).astype(np.int64)
    late = 1 + len(free) if free.size else 0  # a span that ends late is read once more, then decoded on
    return span, codes, int(outcome.codes.passes) + late


def _free_codes(ids: DepthIds, tokens: np.ndarray) -> np.ndarray:
    """Returns i32[N], the codes behind the start of the span; the release counts on any number of them but none."""
    begin = np.flatnonzero(tokens == ids.start)
    inside = tokens[begin[0] :] if begin.size else tokens
    codes = inside[(inside >= ids.first) & (inside < ids.first + ids.num_codes)]
    if not codes.size:
        raise DepthDecodeError(
            f"depth span: no codes among {len(tokens)} tokens. The checkpoint was not trained to predict depth; "
            "depth='adaptive' asks it for codes alone."
        )
    return (codes - ids.first).astype(np.int32)


def _decoded(host: observe.Host, one: Prepared, answer: np.ndarray, *, strict: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the chunk that the answer encodes: normalised and padded to the model's width, and in robot units."""
    assert host.codec is not None  # `Options` refuses the mode without one
    horizon, channels = host.horizon(one.tag), host.channels(one.tag)
    bins = actions.bins_from_ids(answer, host.cfg.tokens, strict=strict)
    chunk = host.codec.decode([bins.tolist()], horizon, channels, strict=strict)[0].astype(np.float32)
    padded = np.pad(chunk, ((0, 0), (0, host.cfg.action_dim - channels)))
    undo = normalize.inverse(one.tag, host.robots.mode, host.cfg.action_dim)
    return padded, normalize.unnormalize(padded, undo)
