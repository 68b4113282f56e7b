import dataclasses

import pytest

from molmoact2_jax.text import tokenizer


@pytest.mark.parametrize(
    "text", ["pick up the red cup", "café ½ 抓住 🤖", "  two  spaces\n", "<state_7><|im_end|>", ""]
)
def test_decoding_gives_back_what_was_encoded(archive, text):
    assert archive.tokenizer.decode(archive.tokenizer.encode(text)) == text


def test_every_added_token_is_one_id(archive):
    for token in ("<|im_start|>", "<state_0>", "<action_2047>", "<im_patch>", "<setup_end>"):
        assert archive.tokenizer.encode(token) == [archive.tokenizer.token_id(token)]


def test_special_tokens_are_left_out_of_decoded_text_on_request(archive):
    ids = archive.tokenizer.encode("<|im_start|>user hello<|im_end|>")
    assert archive.tokenizer.decode(ids, skip_special=True) == "user hello"


def test_size_counts_the_added_tokens(archive):
    assert archive.tokenizer.size == archive.tokenizer.token_id("<|vit_loc|>") + 1


def test_unknown_token_is_named(archive):
    with pytest.raises(ValueError, match="no token '<wheel_0>'"):
        archive.tokenizer.token_id("<wheel_0>")


def test_ids_of_the_configuration_are_those_of_the_vocabulary(archive):
    tokenizer.check(archive.tokenizer, archive.ids)


def test_every_id_that_differs_from_the_vocabulary_is_listed(archive):
    shifted = dataclasses.replace(archive.ids, image_patch=7, action_first=archive.ids.action_first + 1)
    with pytest.raises(ValueError) as error:
        tokenizer.check(archive.tokenizer, shifted)
    for token in ("<im_patch>: config 7", "<action_0>", "<action_2047>"):
        assert token in str(error.value)


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json"):
        tokenizer.Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": ')
    with pytest.raises(ValueError, match="cannot read"):
        tokenizer.Tokenizer.load(tmp_path)
