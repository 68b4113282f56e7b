"""Ways to damage real datasets, by name: the formats they exist in and what the doctor must say."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
import struct
from collections.abc import Callable

import fixtures
import formats
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow_datasets as tfds
from formats import ARCHIVE, PICTURES, RLDS, V3, V21

CAMERA = "observation.images.image"


@dataclasses.dataclass(frozen=True)
class Damage:
    """One way to hurt a dataset: the formats it exists in, what changes before and after writing, what is found."""

    kinds: tuple[str, ...]
    check: str
    words: str
    episode: int | None
    after: Callable | None = None
    before: Callable | None = None
    severity: str = "error"


def shard(directory, episode):
    (path,) = directory.glob(f"*record-{episode:05}-of-*")
    return path


def parquet(directory, episode):
    return directory / f"data/chunk-000/episode_{episode:06}.parquet"


def numbers_file(kind, directory, episode):
    return shard(directory, episode) if kind in (RLDS, ARCHIVE) else parquet(directory, episode)


def rewrite(path, change):
    content = bytearray(path.read_bytes())
    path.write_bytes(bytes(change(content)))


def truncate(kind, directory):
    rewrite(numbers_file(kind, directory, 2), lambda b: b[: len(b) // 2])


def flip(kind, directory):
    def change(content):
        content[len(content) // (8 if kind == V21 else 2)] ^= 0x55
        return content

    rewrite(numbers_file(kind, directory, 1), change)


def lengthen(kind, directory):
    """Overwrites the length that a reader needs first: of the record, or of the parquet footer."""

    def change(content):
        place = 0 if kind == RLDS else len(content) - 8
        content[place : place + 4] = struct.pack("<I", 0x7FFFFFF)
        return content

    rewrite(numbers_file(kind, directory, 3), change)


def remove(kind, directory):
    numbers_file(kind, directory, 0).unlink()


def without_steps(made):
    empty = {name: view[:0] for name, view in made[1].cameras.items()}
    made[1] = dataclasses.replace(made[1], state=made[1].state[:0], action=made[1].action[:0], cameras=empty)


def promise_empty(kind, directory):
    path = directory / "meta/episodes.jsonl"
    path.write_text(path.read_text() + json.dumps({"episode_index": 4, "tasks": [], "length": 0}) + "\n")


def spoil(made):
    made[2].action[5, 3] = np.nan


def explode(made):
    made[2].state[5, 3] = 1e20


def leap(made):
    made[2].state[5:, 3] += 50


def cut_video(kind, directory):
    rewrite(clip(directory, 2), lambda b: b[: len(b) * 2 // 3])


def clip(directory, episode):
    return directory / f"videos/chunk-000/{CAMERA}/episode_{episode:06}.mp4"


def remove_camera(kind, directory):
    clip(directory, 1).unlink()


def flip_picture(kind, directory):
    """Flips a byte inside the pictures of episode 1, of which the numbers know nothing."""
    path = directory / "data/chunk-000/file-000.parquet"
    group = pq.ParquetFile(path).metadata.row_group(1)
    (chunk,) = (c for c in map(group.column, range(group.num_columns)) if c.path_in_schema == f"{CAMERA}.bytes")

    def change(data):
        data[chunk.data_page_offset + chunk.total_compressed_size // 2] ^= 0x55
        return data

    rewrite(path, change)


def shorten_video(kind, directory):
    fixtures.encode(clip(directory, 2), fixtures.episodes()[2].cameras["image"][:6], "libx264", 10)


def change_column(directory, episode, name, change):
    path = parquet(directory, episode)
    rows = pq.read_table(path)
    values = change(rows[name].combine_chunks())
    pq.write_table(rows.set_column(rows.column_names.index(name), name, values), path)


def shift_time(kind, directory):
    def change(values):
        times = values.to_numpy().copy()
        times[3] += 0.04
        return pa.array(times)

    change_column(directory, 2, "timestamp", change)


def whole_numbers(kind, directory):
    def change(values):
        rounded = np.zeros((len(values), fixtures.JOINTS), np.int64)
        return pa.FixedSizeListArray.from_arrays(pa.array(rounded.ravel()), fixtures.JOINTS)

    change_column(directory, 1, "action", change)


def repeat_index(kind, directory):
    change_column(directory, 2, "index", lambda values: pa.array([*values.to_pylist()[:4], 12, *range(17, 21)]))


def other_rate(kind, directory):
    path = directory / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fps": 15}))


def garble_tasks(kind, directory):
    path = directory / "meta/tasks.jsonl"
    path.write_bytes(path.read_bytes().replace(b"push", b"p\xffsh"))


def forget_tasks(kind, directory):
    path = directory / "meta/tasks.jsonl"
    path.write_text(path.read_text().replace("push the block left", "  "))


def forget(made):
    made[2] = dataclasses.replace(made[2], task="")


def garble(made):
    made[2] = dataclasses.replace(made[2], task=b"p\xffsh")


def repeat(made):
    made[3] = dataclasses.replace(made[3], state=made[0].state, action=made[0].action, cameras=made[0].cameras)


def freeze(made):
    made[2] = stretched(made[2])
    made[2].cameras["image"][4:] = made[2].cameras["image"][4]


def stretched(episode):
    """The episode, three times as long."""
    state = np.sin(np.arange(3 * len(episode))[:, None] / 10 + np.arange(8)).astype(np.float32)
    views = {name: np.concatenate([view] * 3) for name, view in episode.cameras.items()}
    return dataclasses.replace(episode, state=state, action=state, cameras=views)


def darken(made):
    made[1].cameras["wrist_image"][2] = 0


def same_views(made):
    made[1].cameras["wrist_image"][:] = made[1].cameras["image"]


def another_size(made):
    views = fixtures.episodes(formats.LENGTHS, size=(40, 64))[1].cameras
    made[1] = dataclasses.replace(made[1], cameras=views)


def empty_picture(kind, directory):
    def change(values):
        pictures = values.to_pylist()
        pictures[9]["bytes"] = b""
        return pa.array(pictures, values.type)

    path = directory / "data/chunk-000/file-000.parquet"
    rows = pq.read_table(path)
    place = rows.column_names.index(CAMERA)
    pq.write_table(rows.set_column(place, CAMERA, change(rows[CAMERA].combine_chunks())), path)


def damaged_steps(tmp_path, change):
    """Rewrites shard 1 of an RLDS dataset with `change` applied to its steps."""
    directory, made = tmp_path, formats.smooth()
    other = directory.with_name(f"{directory.name}-other")
    features = fixtures.rlds_features()
    with fixtures.rlds_write.Writer(other, "own", features, file_format="tfrecord", episodes_per_shard=1) as writer:
        for episode in made:
            steps = fixtures.rlds_steps(episode)
            change(steps)
            writer.add(steps, {"episode_metadata": {"file_path": "", "has_wrist_image": True}})
    shutil.copy(shard(other, 1), shard(directory, 1))


def empty_step_picture(kind, directory):
    def change(steps):
        steps[2]["observation"]["image"] = b""

    damaged_steps(directory, change)


def other_dtype(kind, directory):
    """Replaces shard 1 by one whose actions are texts."""
    described = fixtures.rlds_features()
    steps = dict(described["steps"].feature.items())
    steps["action"] = tfds.features.Text()
    features = tfds.features.FeaturesDict({**dict(described.items()), "steps": tfds.features.Dataset(steps)})
    other = directory.with_name(f"{directory.name}-other")
    with fixtures.rlds_write.Writer(other, "own", features, file_format="tfrecord", episodes_per_shard=1) as writer:
        for episode in formats.smooth():
            words = dataclasses.replace(episode, action=["up"] * len(episode))
            metadata = {"episode_metadata": {"file_path": "", "has_wrist_image": True}}
            writer.add(fixtures.rlds_steps(words), metadata)
    shutil.copy(shard(other, 1), shard(directory, 1))


DAMAGES = {
    "truncated shard": Damage((RLDS, ARCHIVE, V21), "unreadable", "", 2, truncate),
    "flipped byte": Damage((RLDS, ARCHIVE, V21), "unreadable", "", 1, flip),
    "wrong length header": Damage((RLDS, V21), "unreadable", "", 3, lengthen),
    "missing shard": Damage((RLDS, ARCHIVE, V21), "unreadable", "", 0, remove),
    "empty episode": Damage((RLDS, ARCHIVE), "unreadable", "no steps", 1, before=without_steps),
    "empty episode in the metadata": Damage((V21,), "unreadable", "", 4, promise_empty),
    "NaN action": Damage(
        (RLDS, ARCHIVE, V3, PICTURES, V21),
        "not finite",
        "action channel 3",
        2,
        before=spoil,
    ),
    "extreme value": Damage((RLDS, V3), "extreme value", "state channel 3", 2, before=explode),
    "jump": Damage((RLDS, V3), "jump", "state channel 3", 2, before=leap, severity="warning"),
    "mp4 cut short": Damage((V21,), "picture", "mp4", 2, cut_video),
    "mp4 with too few frames": Damage((V21,), "picture", "no frame within", 2, shorten_video),
    "missing camera": Damage((V21,), "picture", "mp4", 1, remove_camera),
    "flipped byte in a picture": Damage((PICTURES,), "picture", "", 1, flip_picture),
    "timestamps off": Damage((V21,), "timestamp", "0.34", 2, shift_time),
    "wrong dtype": Damage((V21,), "unreadable", "int64", 1, whole_numbers),
    "wrong dtype of a shard": Damage((RLDS,), "unreadable", "", 1, other_dtype),
    "wrong fps": Damage((V3, V21), "rate", "10 frames per second, declared are 15", 0, other_rate),
    "zero-byte image": Damage((RLDS,), "picture", "0 bytes", 1, empty_step_picture),
    "zero-byte image in parquet": Damage((PICTURES,), "picture", "0 bytes", 1, empty_picture),
    "text that is not UTF-8": Damage((V21,), "language", "not UTF-8", 2, garble_tasks),
    "text of a step that is not UTF-8": Damage((RLDS, ARCHIVE), "language", "not UTF-8", 2, before=garble),
    "absent language": Damage((RLDS, ARCHIVE), "no language", "", 2, before=forget),
    "blank task": Damage((V21,), "no language", "", 2, forget_tasks),
    "duplicate index": Damage((V21,), "duplicate index", "index 12", 2, repeat_index),
    "duplicate episode": Damage((RLDS, V3), "duplicate episode", "episode 0", 3, before=repeat, severity="warning"),
    "frozen camera": Damage((RLDS, PICTURES), "frozen picture", "image", 2, before=freeze, severity="warning"),
    "blank picture": Damage((RLDS, PICTURES), "blank picture", "wrist_image", 1, before=darken, severity="warning"),
    "one view twice": Damage(
        (RLDS, PICTURES), "cameras", "the same pictures", 1, before=same_views, severity="warning"
    ),
    "another size": Damage((RLDS,), "picture size", "40 x 64", None, before=another_size, severity="warning"),
}
CASES = [(name, kind) for name, damage in DAMAGES.items() for kind in damage.kinds]


def hurt(name, kind, sound, tmp_path) -> pathlib.Path:
    """Makes a dataset with one damage: a copy of the sound one, or written from damaged episodes."""
    damage, directory = DAMAGES[name], tmp_path / "data"
    if damage.before is None:
        shutil.copytree(sound[kind], directory, ignore=shutil.ignore_patterns(".molmoact2"))
    else:
        made = formats.smooth()
        damage.before(made)
        formats.write(kind, directory, made)
    if damage.after is not None:
        damage.after(kind, directory)
    return directory
