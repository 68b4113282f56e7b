"""Writes the annotated instructions of a LeRobot dataset (`io.md` 8.1), which `lerobot_meta` reads."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from molmoact2_jax.data import lerobot_meta

_INDEX, _TEXT = "episode_index", "task"


def parse(path: str | os.PathLike[str]) -> dict[int, str]:
    """Reads {"episode_index": number, "task": instruction} from every line of a JSON lines file.

    Raises:
      ValueError: a line of another form, a blank instruction, or an episode named twice.
    """
    found: dict[int, str] = {}
    for number, line in enumerate(pathlib.Path(path).read_text("utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            episode, text = int(row[_INDEX]), row[_TEXT]
        except (ValueError, KeyError, TypeError) as error:
            form = f'{{"{_INDEX}": 0, "{_TEXT}": "..."}}'
            raise ValueError(f"{path}, line {number}: {line[:80]!r}, expected {form}.") from error
        if not isinstance(text, str) or not text.strip() or episode in found:
            raise ValueError(f"{path}, line {number}: {line[:80]!r}, expected one instruction per episode, not blank.")
        found[episode] = text
    return found


def write(root: str | os.PathLike[str], texts: Mapping[int, str]) -> pathlib.Path:
    """Writes `meta/tasks_annotated.parquet`, replacing one that is there. Returns its path.

    Args:
      root: of a LeRobot dataset.
      texts: {episode number: instruction}; the others keep their own.

    Raises:
      ValueError: no LeRobot dataset, or an episode that it has not.
    """
    meta = lerobot_meta.read(pathlib.Path(root))
    absent = sorted(set(texts) - set(meta.ids.tolist()))
    if absent:
        raise ValueError(f"{root}: no episodes {absent[:10]}, expected numbers among its {len(meta.ids)}.")
    path = meta.root / "meta" / "tasks_annotated.parquet"
    table = pa.table({_TEXT: pa.array(texts.values(), pa.string()), _INDEX: pa.array(texts.keys(), pa.int64())})
    described = {"index_columns": [_INDEX], "column_indexes": [], "columns": [_column(_TEXT), _column(_INDEX)]}
    unfinished = path.with_suffix(".incomplete")
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(described)}), unfinished)
    unfinished.replace(path)
    return path


def _column(name: str) -> dict[str, str | None]:
    """Describes a column as pandas does, so that the number of the episode is the index of the frame it reads."""
    kind, numpy = ("int64", "int64") if name == _INDEX else ("unicode", "object")
    return {"name": name, "field_name": name, "pandas_type": kind, "numpy_type": numpy, "metadata": None}
