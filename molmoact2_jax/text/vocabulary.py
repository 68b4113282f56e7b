"""A tokenizer for a small model that starts from nothing: few words, and one token for each phrase of the prompt.

The released vocabulary of 151 643 entries would be most of a small model. This one holds all bytes, so that any text
can be written, the words of the instructions, and the fixed phrases of the robot's prompt as single tokens: a prompt
takes about 30 positions instead of 80.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from molmoact2_jax.config import TokenIds
from molmoact2_jax.text import prompt

# Where Qwen's tokenizer splits text into words.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ENDS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # end the base vocabulary, in this order
IMAGES = (
    "<im_start>", "<im_end>", "<im_patch>", "<im_col>", "<low_res_im_start>", "<|image|>", "<im_low>", "<frame_start>",
    "<frame_end>", "<|video|>", "<|points|>", "<|token_index|>", "<|vit_index|>", "<|vit_loc|>",
)  # fmt: skip
MARKERS = ("<setup_start>", "<setup_end>", "<control_start>", "<control_end>", "<state_start>", "<state_end>")
OUTPUTS = ("<action_output>", "<action_start>", "<action_end>")
MULTIPLE = 128  # the table's rows are padded to it, as released
_TASK = "\x00"


def phrases(setup: str, control: str) -> tuple[str, ...]:
    """Returns the fixed parts of a robot's prompt for actions, in order."""
    question = prompt.robot_question(_TASK, setup, control, [0], "robot_action")
    parts = re.split(rf"<[^<>]*>|{_TASK}", prompt.robot_prompt(question, "robot_action", 1))
    return tuple(dict.fromkeys(part for part in parts if part.strip()))


def build(instructions: Iterable[str], fixed: Iterable[str], num_states: int) -> tokenizers.Tokenizer:
    """Returns a byte-level tokenizer that writes each word of the instructions, and each fixed phrase, as one token.

    Args:
      instructions: texts as they stand in prompts (`prompt.normalize_task`).
      fixed: phrases that become single tokens.
      num_states: bins of a state channel, one token each.
    """
    made = tokenizers.Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    made.decoder = decoders.ByteLevel()
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=20_000, min_frequency=1, initial_alphabet=bytes_, special_tokens=[], show_progress=False
    )
    made.train_from_iterator(sorted(set(instructions)), trainer)
    made.add_special_tokens([_token(text, special=True) for text in ENDS])
    made.add_tokens([_token(text) for text in fixed])
    families = (*MARKERS, *(f"<state_{i}>" for i in range(num_states)), *OUTPUTS)
    made.add_tokens([_token(text) for text in families])
    used = made.get_vocab_size()
    made.add_special_tokens([_token(f"<extra_{i}>", special=True) for i in range(-used % MULTIPLE)])
    made.add_special_tokens([_token(text, special=True) for text in IMAGES])
    return made


def rows(made: tokenizers.Tokenizer) -> int:
    """Returns how many tokens come before those of images, which have a table of their own."""
    return made.get_vocab()[IMAGES[0]]


def token_ids(made: tokenizers.Tokenizer, num_states: int) -> TokenIds:
    """Returns the ids of a model that reads and writes such a vocabulary: continuous actions, no depth."""
    at = made.get_vocab().__getitem__
    return TokenIds(
        bos=at("<|im_end|>"), eos=at("<|im_end|>"), pad=at("<|endoftext|>"), image_start=at("<im_start>"),
        image_end=at("<im_end>"), image_patch=at("<im_patch>"), image_col=at("<im_col>"),
        low_res_image_start=at("<low_res_im_start>"), image_low=at("<im_low>"), frame_start=at("<frame_start>"),
        frame_end=at("<frame_end>"), action_output=at("<action_output>"), action_start=at("<action_start>"),
        action_end=at("<action_end>"), state_start=at("<state_start>"), state_end=at("<state_end>"),
        state_first=at("<state_0>"), num_states=num_states,
    )  # fmt: skip


def _token(text: str, special: bool = False) -> AddedToken:
    return AddedToken(text, special=special, normalized=False)
