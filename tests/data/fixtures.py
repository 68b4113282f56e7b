"""Makers of small real datasets: every format, real encoders, known content."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from molmoact2_jax.data import lerobot as lerobot_reader
from molmoact2_jax.data import lerobot_files, lerobot_write, oxe, pictures, rlds_write, table, video

HEIGHT, WIDTH, JOINTS = 48, 64, 8
TASKS = ("pick up the cup", "Öffne die Schublade", "push the block left")
MOTORS = (*(f"joint_{i}.pos" for i in range(JOINTS - 1)), "gripper.pos")
VIEWS = ("observation.images.image", "observation.images.wrist_image")
TAG = oxe.Tag("own", 4, "test arm", oxe.JOINTS)
ROW = dataclasses.replace(
    oxe.TEMPLATE,
    name="own",
    cameras=tuple(oxe.Camera(name, f"steps/observation/{name}") for name in ("image", "wrist_image")),
)


def picture(episode: int, frame: int, camera: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> np.ndarray:
    """u8[H, W, 3]: waves, with 16 blocks of 8x8 pixels that spell frame (10 bits), episode (4) and camera (2)."""
    y, x = np.mgrid[0 : size[0], 0 : size[1]]
    shift = 7 * frame + 31 * episode + 101 * camera
    waves = [np.sin((plane + shift) / 20) for plane in (x, y, x + y)]
    out = (120 + 60 * np.stack(waves, axis=-1)).astype(np.uint8)
    word = frame | episode << 10 | camera << 14
    for bit in range(16):
        top, left = 8 * (bit // 8), 8 * (bit % 8)
        out[top : top + 8, left : left + 8] = 255 * (word >> bit & 1)
    return out


def code(pixels: np.ndarray) -> tuple[int, int, int]:
    """Reads (episode, frame, camera) from a picture, however it was compressed."""
    blocks = pixels[:16, :64].mean(axis=-1).reshape(2, 8, 8, 8).mean(axis=(1, 3)).reshape(-1) > 128
    word = int((blocks << np.arange(16)).sum())
    return word >> 10 & 15, word & 1023, word >> 14


@dataclasses.dataclass(frozen=True)
class Episode:
    """What an episode is made of: f32[L, 8] state and action, u8[L, H, W, 3] per camera, one instruction."""

    state: np.ndarray
    action: np.ndarray
    cameras: dict[str, np.ndarray]
    task: str

    def __len__(self) -> int:
        return len(self.state)


def episodes(lengths=(7, 5, 9), cameras=("image", "wrist_image"), size=(HEIGHT, WIDTH)) -> list[Episode]:
    """Makes episodes of which no two numbers or pictures are equal."""
    rng = np.random.default_rng(7)
    out = []
    for e, length in enumerate(lengths):
        views = {name: [picture(e, t, c, size) for t in range(length)] for c, name in enumerate(cameras)}
        stacks = {name: np.array(view, np.uint8).reshape(length, *size, 3) for name, view in views.items()}
        state, action = rng.normal(size=(2, length, JOINTS)).astype(np.float32)
        out.append(Episode(state, action, stacks, TASKS[e % len(TASKS)]))
    return out


def rlds_features(cameras=("image", "wrist_image"), encoding="png", joints=JOINTS):
    """Features of the RLDS datasets made here: what `ROW` reads, and some that nobody reads."""
    import tensorflow_datasets as tfds

    def vector(dtype=np.float32):
        return tfds.features.Tensor(shape=(joints,), dtype=dtype)

    views = {name: tfds.features.Image(shape=(None, None, 3), encoding_format=encoding) for name in cameras}
    steps = {
        "observation": {"state": vector(), "joint_velocity": vector(np.float64), **views},
        "action": vector(),
        "reward": tfds.features.Scalar(np.float32),
        "is_last": tfds.features.Scalar(np.bool_),
        "language_instruction": tfds.features.Text(),
        "language_embedding": tfds.features.Tensor(shape=(512,), dtype=np.float32),
    }
    metadata = {"file_path": tfds.features.Text(), "has_wrist_image": tfds.features.Scalar(np.bool_)}
    return tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps), "episode_metadata": metadata})


def rlds_steps(episode: Episode, encode: Callable[[np.ndarray], bytes] = pictures.encode_png) -> list[dict]:
    """Steps of an episode as the writer takes them."""
    return [
        {
            "observation": {
                "state": episode.state[t],
                "joint_velocity": np.zeros_like(episode.state[t], np.float64),
                **{name: encode(view[t]) for name, view in episode.cameras.items()},
            },
            "action": episode.action[t],
            "reward": np.float32(t),
            "is_last": t == len(episode) - 1,
            "language_instruction": episode.task,
            "language_embedding": np.zeros(512, np.float32),
        }
        for t in range(len(episode))
    ]


def rlds(
    directory: pathlib.Path, made: list[Episode], *, file_format="tfrecord", encoding="png", per_shard=2, joints=JOINTS
):
    """Writes episodes with our writer. Returns the directory."""
    encode = pictures.encode_png if encoding == "png" else pictures.encode_jpeg
    cameras = tuple(made[0].cameras)
    features = rlds_features(cameras, encoding, joints)
    options = dict(file_format=file_format, episodes_per_shard=per_shard)
    with rlds_write.Writer(directory, "own", features, **options) as writer:
        for e, episode in enumerate(made):
            metadata = {"file_path": f"raw/{e}", "has_wrist_image": e != 1}
            writer.add(rlds_steps(episode, encode), {"episode_metadata": metadata})
    return directory


def rlds_by_tfds(directory: pathlib.Path, made: list[Episode]) -> pathlib.Path:
    """Writes episodes with TFDS' own builder (ArrayRecord; it orders records by a hash). Returns the directory."""
    import tensorflow_datasets as tfds

    class Own(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(builder=self, features=rlds_features())

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for e, episode in enumerate(made):
                yield e, {"steps": rlds_steps(episode), "episode_metadata": {"file_path": "", "has_wrist_image": True}}

    builder = Own(data_dir=directory, file_format="array_record")
    builder.download_and_prepare()
    return pathlib.Path(builder.data_dir)


def lerobot_features(made: list[Episode], dtype: str) -> dict:
    """Features of the LeRobot datasets made here; dtype "video" or "image"."""
    height, width = next(iter(made[0].cameras.values())).shape[1:3]
    views = {f"observation.images.{name}": lerobot_write.camera(height, width, dtype=dtype) for name in made[0].cameras}
    return {"observation.state": lerobot_write.vector(MOTORS), "action": lerobot_write.vector(MOTORS), **views}


def lerobot_frame(episode: Episode, t: int) -> dict:
    """One frame as the writer takes it."""
    views = {f"observation.images.{name}": view[t] for name, view in episode.cameras.items()}
    return {"observation.state": episode.state[t], "action": episode.action[t], **views}


def lerobot(directory: pathlib.Path, made: list[Episode], *, dtype="video", codec="libx264", fps=10) -> pathlib.Path:
    """Writes episodes as LeRobot v3.0 with our writer. Returns the directory."""
    writer = lerobot_write.Writer(directory, fps=fps, features=lerobot_features(made, dtype), codec=codec)
    for episode in made:
        for t in range(len(episode)):
            writer.add(lerobot_frame(episode, t), episode.task)
        writer.end_episode()
    return writer.finalize()


def lerobot_v21(directory: pathlib.Path, made: list[Episode], *, codec="libx264", fps=10) -> pathlib.Path:
    """Writes episodes as LeRobot v2.1: a parquet file, and a video per camera, for each. Returns the directory."""
    features = lerobot_features(made, "video")
    tasks = {task: i for i, task in enumerate(dict.fromkeys(episode.task for episode in made))}
    start = 0
    for e, episode in enumerate(made):
        length = len(episode)
        frames = np.arange(length)
        table = {key: lerobot_files.column(value, features[key]) for key, value in
                 {"observation.state": episode.state, "action": episode.action}.items()}  # fmt: skip
        table |= {"timestamp": pa.array((frames / fps).astype(np.float32)), "frame_index": pa.array(frames)}
        table |= {"episode_index": pa.array(frames * 0 + e), "index": pa.array(frames + start)}
        table |= {"task_index": pa.array(frames * 0 + tasks[episode.task])}
        path = directory / f"data/chunk-000/episode_{e:06}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), path, write_page_checksum=True)
        for name, view in episode.cameras.items():
            clip = directory / f"videos/chunk-000/observation.images.{name}/episode_{e:06}.mp4"
            clip.parent.mkdir(parents=True, exist_ok=True)
            encode(clip, view, codec, fps)
        start += length
    _meta_v21(directory, made, tasks, features, fps)
    return directory


def encode(path: pathlib.Path, frames: np.ndarray, codec: str, fps: int) -> None:
    """Writes u8[L, H, W, 3] as a video."""
    encoder = video.Encoder(path, fps, frames.shape[1:3], codec)
    for frame in frames:
        encoder.add(frame)
    encoder.close()


def _meta_v21(directory: pathlib.Path, made: list[Episode], tasks: dict[str, int], features: dict, fps: int) -> None:
    whole = {"dtype": "int64", "shape": [1], "names": None}
    defaults = {name: whole for name in ("frame_index", "episode_index", "index", "task_index")}
    info = {
        "codebase_version": "v2.1",
        "fps": fps,
        "chunks_size": 1000,
        "features": features | {"timestamp": {"dtype": "float32", "shape": [1], "names": None}} | defaults,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    meta = directory / "meta"
    meta.mkdir()
    (meta / "info.json").write_text(json.dumps(info))
    episodes = [{"episode_index": e, "tasks": [made[e].task], "length": len(made[e])} for e in range(len(made))]
    (meta / "episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in episodes))
    lines = ({"task_index": i, "task": task} for task, i in tasks.items())
    (meta / "tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines))


def open_lerobot(directory, tag=TAG, depth=None, **options) -> lerobot_reader.LeRobotSource:
    """Opens what `lerobot` or `lerobot_v21` wrote; options are those of `table.Options`."""
    return lerobot_reader.LeRobotSource(directory, tag, table.Options(**options), depth=depth)


def copy(directory: pathlib.Path, to: pathlib.Path) -> pathlib.Path:
    """Copies a dataset without its caches, to be spoilt."""
    return shutil.copytree(directory, to, ignore=shutil.ignore_patterns(".molmoact2"))
