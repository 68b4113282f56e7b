"""What the parts of a long job took: `python -m molmoact2_jax.eval.timings FILE PART COMMAND...` runs and records one.

The file has a line of JSON per run of a part: {"part": str, "seconds": float, "peak_bytes": int, "status": int}. A part
that was interrupted and taken up again has several lines; `read` adds their seconds.
"""

from __future__ import annotations

import json
import pathlib
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

UNIT = 1 if sys.platform == "darwin" else 1024  # bytes in which the system counts a process's memory


def measure(file: pathlib.Path, part: str, command: Sequence[str]) -> int:
    """Runs a command, appends its wall time and the memory of its largest process; returns its exit status.

    The command decides how it ends: SIGTERM is passed on, and the interrupt of a terminal, which reaches it anyway, is
    waited out.

    Args:
      file: for the line; its directory is made.
      part: name of the part, as the report shows it.
      command: program and arguments; it shares this process's input and output.
    """
    begin = time.perf_counter()
    process = subprocess.Popen(list(command))
    handlers = {signal.SIGTERM: lambda number, _: process.send_signal(number), signal.SIGINT: lambda number, _: None}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    status = code if code >= 0 else 128 - code
    record(file, part, time.perf_counter() - begin, status)
    return status


def record(file: pathlib.Path, part: str, seconds: float, status: int = 0) -> None:
    """Appends the line of a part that has just ended; its memory is that of the largest process it had waited for."""
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * UNIT
    line = dict(part=part, seconds=round(seconds, 2), peak_bytes=peak, status=status)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(line) + "\n")


def read(file: pathlib.Path) -> dict[str, dict[str, float]]:
    """Returns {part: seconds of all its runs, greatest peak_bytes, how many runs}, in the order of the file.

    Raises:
      ValueError: a line that is not of this format.
    """
    parts: dict[str, dict[str, float]] = {}
    for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
        try:
            found = json.loads(line)
            name, seconds, peak = found["part"], float(found["seconds"]), int(found["peak_bytes"])
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number}: {line!r}, expected part, seconds, peak_bytes. Remove it.") from error
        before = parts.get(name, dict(seconds=0.0, peak_bytes=0, runs=0))
        parts[name] = dict(
            seconds=before["seconds"] + seconds, peak_bytes=max(before["peak_bytes"], peak), runs=before["runs"] + 1
        )
    return parts


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: python -m molmoact2_jax.eval.timings FILE PART COMMAND...")
    sys.exit(measure(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
