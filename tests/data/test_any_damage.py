"""Whatever happens to whichever file, a dataset is refused in one error that names it, or damaged sample by sample."""

import random
import shutil

import fixtures
import formats
import numpy as np
import pytest

from molmoact2_jax.data import doctor
from molmoact2_jax.data.source import SampleError

DAMAGES = 25  # of each format


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return formats.sound_copies(tmp_path_factory.mktemp("sound"))


def hurt(directory, rng):
    """Flips a bit, cuts, blanks, overwrites or removes one file."""
    path = rng.choice(sorted(p for p in directory.rglob("*") if p.is_file() and p.stat().st_size))
    content, how = bytearray(path.read_bytes()), rng.choice(("flip", "flip", "cut", "blank", "noise", "remove"))
    at = rng.randrange(len(content))
    if how == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif how == "cut":
        del content[at:]
    elif how == "blank":
        content[at : at + 64] = bytes(len(content[at : at + 64]))
    elif how == "noise":
        content[at : at + 20] = rng.randbytes(len(content[at : at + 20]))
    path.unlink() if how == "remove" else path.write_bytes(content)


def read(source, made):
    """Reads all that training reads. Returns the errors of refused frames; numbers of the others must be as made."""
    errors = []
    for index in range(source.num_frames):
        episode, frame = source.locate(index)
        expected = made[source.episode_ids[episode]]
        try:
            np.testing.assert_array_equal(source.state(episode, frame), expected.state[frame])
            np.testing.assert_array_equal(source.chunk(episode, frame, 10).actions[0], expected.action[frame])
            source.tasks(episode, frame)
            source.frames(episode, [frame], source.cameras_of(episode))
        except SampleError as error:
            errors.append(error)
    return errors


@pytest.mark.parametrize("kind", formats.KINDS)
def test_any_damage_is_one_error_or_damaged_samples(kind, sound, tmp_path):
    rng, made, refusals, samples = random.Random(kind), formats.smooth(), [], []
    for number in range(DAMAGES):
        directory = fixtures.copy(sound[kind], tmp_path / "data")
        hurt(directory, rng)
        try:
            source = formats.open_source(kind, directory)
        except ValueError as error:
            refusals.append(str(error))
        else:
            samples += read(source, made) + list(source.problems)
            if number % 5 == 0:
                doctor.examine(source, doctor.Options(budget=1.0, workers=1))
            source.close()
        shutil.rmtree(directory)
    assert 0 < len(refusals) < DAMAGES - 5
    assert all(str(tmp_path / "data") in refusal for refusal in refusals), refusals
    assert all(sample.dataset == "own" and sample.reason for sample in samples)
