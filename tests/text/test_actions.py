import json
import pickle

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from molmoact2_jax.data import norm_stats, normalize
from molmoact2_jax.text import actions


def _trajectory(horizon, channels, rng):
    """A smooth random chunk in [-1, 1], as the golden archives use."""
    time = np.linspace(0, 1, horizon)[:, None]
    start, slope = rng.normal(size=(1, channels)) * 0.4, rng.normal(size=(1, channels)) * 0.5
    rate = rng.uniform(0.3, 1.2, (1, channels))
    wave = 0.3 * np.sin(2 * np.pi * (time * rate + rng.uniform(size=(1, channels))))
    return np.clip(start + slope * (time - 0.5) + wave, -1, 1)


@pytest.fixture
def codec(archive):
    return actions.ActionCodec.load(archive.directory / "action_tokenizer")


def _streams(archive):
    return [t.tolist() for t in np.split(archive.arrays["fast/tokens"], np.cumsum(archive.arrays["fast/lens"])[:-1])]


def test_chunks_encode_to_the_released_tokens(archive, codec):
    assert codec.encode(archive.arrays["fast/actions"]) == _streams(archive)
    for case in range(3):
        chunk = archive.arrays[f"case{case}/target_actions"]
        assert codec.encode(chunk[None])[0] == archive.arrays[f"case{case}/target_action_tokens"].tolist()


def test_tokens_decode_to_the_released_chunks(archive, codec):
    decoded = codec.decode(_streams(archive), 10, 7)
    assert decoded.dtype == np.float32
    np.testing.assert_allclose(decoded, archive.arrays["fast/decoded"], rtol=0, atol=1e-15)


def test_malformed_stream_gives_the_released_zeros_or_an_error_with_counts(archive, codec):
    stream = archive.arrays["fast/bad_tokens"]
    expected = archive.arrays["fast/bad_decoded"]
    np.testing.assert_array_equal(codec.decode([stream], 10, 7, strict=False), expected)
    good = _streams(archive)[0]
    with pytest.raises(actions.ActionDecodeError, match=r"actions\[1\]: 3 tokens decode to \d+ coeff") as error:
        codec.decode([good, stream], 10, 7)
    assert error.value.expected == 70 and 0 < error.value.got < 70
    again = pickle.loads(pickle.dumps(error.value))
    assert (again.expected, again.got, str(again)) == (70, error.value.got, str(error.value))


def test_one_malformed_stream_spoils_no_other(archive, codec):
    good = _streams(archive)[0]
    both = codec.decode([[], good], 10, 7, strict=False)
    assert not both[0].any()
    np.testing.assert_array_equal(both[1], codec.decode([good], 10, 7)[0])


def test_tokens_that_the_codec_never_learned_are_refused(archive, codec):
    with pytest.raises(actions.ActionDecodeError, match="1 tokens outside"):
        codec.decode([[*_streams(archive)[0], 2047]], 10, 7)


def test_bytes_that_spell_no_level_are_refused():
    """Levels from the 129th on take two bytes; half of one is no character."""
    chunks = np.random.default_rng(0).uniform(-1, 1, (30, 4, 2))
    codec = actions.ActionCodec.fit(chunks, scale=100, vocab_size=1024)
    half = next(t for t in range(codec.size) if codec.backend.decode([t]) == "\ufffd")
    one = next(t for t in range(codec.size) if codec.backend.decode([t]) == "a")
    stream = [*[one] * 7, half]
    with pytest.raises(actions.ActionDecodeError, match="spell no level"):
        codec.decode([stream], 4, 2)
    assert np.abs(codec.decode([stream], 4, 2, strict=False)).max() > 100  # as released: the level 65533


@pytest.mark.parametrize(("horizon", "channels"), [(10, 7), (30, 14), (3, 2), (1, 1)])
def test_decoding_gives_back_the_chunk_to_half_a_level(horizon, channels):
    rng = np.random.default_rng(horizon)
    chunks = np.stack([_trajectory(horizon, channels, rng) for _ in range(40)])
    codec = actions.ActionCodec.fit(chunks, scale=10, vocab_size=512)
    assert not codec.losses(chunks).any()
    back = codec.decode(codec.encode(chunks), horizon, channels)
    error = np.linalg.norm(back - chunks, axis=1)
    assert error.max() <= 0.5 / 10 * np.sqrt(horizon) + 1e-6


def test_fitting_the_same_chunks_gives_the_released_files(archive, tmp_path):
    seed = json.loads((archive.directory / "golden.json").read_text())["seed"]
    rng = np.random.default_rng(seed)
    chunks = [_trajectory(10, 32, rng) * (np.arange(32) < (7 if i % 2 else 14)) for i in range(300)]
    actions.ActionCodec.fit(chunks, scale=10, vocab_size=2048).save(tmp_path)
    released = archive.directory / "action_tokenizer"
    for name in ("tokenizer.json", "processor_config.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((released / name).read_text())


def test_a_saved_codec_loads_equal(tmp_path):
    chunks = np.stack([_trajectory(12, 3, np.random.default_rng(i)) for i in range(20)])
    codec = actions.ActionCodec.fit(chunks, scale=12.5, vocab_size=300)
    codec.save(tmp_path / "new" / "codec")
    again = actions.ActionCodec.load(tmp_path / "new" / "codec")
    assert (again.scale, again.min_token, again.vocab_size) == (12.5, codec.min_token, 300)
    assert again.encode(chunks) == codec.encode(chunks)


def test_channels_are_written_lowest_frequency_first():
    chunks = np.random.default_rng(0).uniform(-1, 1, (30, 8, 2))
    codec = actions.ActionCodec.fit(chunks, vocab_size=256)
    constant = np.broadcast_to([0.5, -0.25], (1, 8, 2))
    text = codec.backend.decode(codec.encode(constant)[0])
    levels = [ord(c) + codec.min_token for c in text]
    assert levels == [round(0.5 * np.sqrt(8) * 10), round(-0.25 * np.sqrt(8) * 10)] + [0] * 14


def test_a_batch_encodes_like_its_chunks(codec):
    chunks = np.stack([_trajectory(10, 7, np.random.default_rng(i)) for i in range(5)]).astype(np.float32)
    assert codec.encode(chunks) == [codec.encode(chunk[None])[0] for chunk in chunks]


def test_what_cannot_be_written_is_counted():
    """The released codec lacks characters for some levels; a chunk that needs one decodes short."""
    chunks = np.random.default_rng(0).uniform(-1, 1, (30, 8, 2))
    full = actions.ActionCodec.fit(chunks, vocab_size=256)
    vocab = {k: v for k, v in json.loads(full.backend.to_str())["model"]["vocab"].items() if len(k) == 1}
    center = chr(-full.min_token)
    gone = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(center)[0][0]
    kept = {k: i for i, k in enumerate(k for k in vocab if k != gone)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=kept, merges=[]))
    backend.pre_tokenizer, backend.decoder = full.backend.pre_tokenizer, full.backend.decoder
    codec = actions.ActionCodec(backend, 10, full.min_token, 256)
    zeros = np.zeros((1, 8, 2))
    assert codec.losses(zeros).tolist() == [16] and full.losses(zeros).tolist() == [0]
    with pytest.raises(actions.ActionDecodeError, match="to 0 coefficients, expected 16"):
        codec.decode(codec.encode(zeros), 8, 2)
    assert full.losses(np.full((1, 8, 2), -9.0)).tolist() == [2]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [(np.zeros((8, 2)), "shape"), (np.zeros((0, 8, 2)), "not empty"), (np.full((1, 8, 2), np.nan), "NaN")],
)
def test_chunks_that_are_none_are_refused(codec, chunks, message):
    with pytest.raises(ValueError, match=message):
        codec.encode(chunks)


def test_fitting_refuses_what_it_cannot_represent():
    with pytest.raises(ValueError, match="no chunks"):
        actions.ActionCodec.fit([])
    with pytest.raises(ValueError, match="expected at most 64"):
        actions.ActionCodec.fit([np.linspace(-9, 9, 20)[:, None]], vocab_size=64)


def test_settings_that_are_missing_take_the_released_defaults(archive, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes((archive.directory / "action_tokenizer/tokenizer.json").read_bytes())
    codec = actions.ActionCodec.load(tmp_path)
    assert (codec.scale, codec.min_token, codec.vocab_size) == (10, 0, 1024)
    (tmp_path / "processor_config.json").write_text('{"scale": "ten"}')
    with pytest.raises(ValueError, match="action codec: cannot read"):
        actions.ActionCodec.load(tmp_path)


def test_generated_ids_give_the_bins_of_the_first_span(archive):
    ids, first = archive.ids, archive.ids.action_first
    stream = [7, ids.action_start, first + 3, first, ids.action_end, first + 9, ids.eos]
    assert actions.bins_from_ids(stream, ids).tolist() == [3, 0]
    assert actions.bins_from_ids([first + 1, first + 2], ids).tolist() == [1, 2]
    assert actions.bins_from_ids([5, ids.action_start, first + 2], ids).tolist() == [2]


def test_released_streams_are_read_as_released(archive, codec):
    for case in (0, 2):
        if (key := f"case{case}/tokens_discrete") in archive.arrays:
            bins = actions.bins_from_ids(archive.arrays[key], archive.ids)
            assert bins.tolist() == archive.arrays[f"case{case}/target_action_tokens"].tolist()
            assert codec.decode([bins], 10, 7).shape == (1, 10, 7)


def test_other_tokens_inside_the_span_are_refused_or_left_out(archive):
    ids, first = archive.ids, archive.ids.action_first
    stream = [ids.action_start, first + 3, ids.eos, first + ids.num_actions, ids.state_start, first + 4, ids.action_end]
    with pytest.raises(actions.ActionDecodeError, match="2 action tokens among 5 ids") as error:
        actions.bins_from_ids(stream, ids)
    assert error.value.got == 2
    assert actions.bins_from_ids(stream, ids, strict=False).tolist() == [3, 4]


@pytest.mark.parametrize("strict", [True, False])
def test_a_stream_without_action_tokens_is_an_error(archive, strict):
    with pytest.raises(actions.ActionDecodeError, match="0 action tokens"):
        actions.bins_from_ids([archive.ids.action_start, archive.ids.action_end], archive.ids, strict=strict)


@pytest.mark.parametrize("case", range(3))
def test_released_streams_become_the_released_actions(archive, codec, case):
    """Case 1 is malformed: zeros in the model's range, the middle of each channel's bounds in the robot's."""
    if f"case{case}/tokens_discrete" not in archive.arrays:
        pytest.skip("the archive has no discrete runs")
    stats = norm_stats.load(archive.directory / "norm_stats.json")
    tag = stats.tag(archive.cases[case]["tag"])
    bins = actions.bins_from_ids(archive.arrays[f"case{case}/tokens_discrete"], archive.ids, strict=False)
    chunk = codec.decode([bins], tag.horizon, tag.action.width, strict=False)
    robot = normalize.unnormalize(chunk, normalize.inverse(tag, stats.mode, tag.action.width))
    expected = archive.arrays[f"case{case}/actions_discrete"]
    np.testing.assert_allclose(robot[:, : tag.n_action_steps], expected, rtol=0, atol=1e-6)
    assert chunk.any() == (case != 1)
