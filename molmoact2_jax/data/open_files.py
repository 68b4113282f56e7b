"""What readers keep open. Sources that share one stay within its limits, however many datasets a run mixes."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import threading
from typing import Any

from molmoact2_jax.data import archive, row_groups, tfrecord, video

_CAMERAS = 8  # decoded at the same time


@dataclasses.dataclass
class OpenFiles:
    """Open files, decoders, records read last, threads. It pickles empty, and shared if its sources pickle together."""

    decoders: video.Decoders = dataclasses.field(default_factory=video.Decoders)
    groups: row_groups.RowGroups = dataclasses.field(default_factory=row_groups.RowGroups)
    records: tfrecord.Files = dataclasses.field(default_factory=tfrecord.Files)
    archive: archive.Archive = dataclasses.field(default_factory=archive.Archive)

    def __post_init__(self):
        self._threads: concurrent.futures.ThreadPoolExecutor | None = None
        self._lock = threading.Lock()

    def threads(self) -> concurrent.futures.ThreadPoolExecutor:
        """Returns the threads that decode the cameras of a frame; started on the first call."""
        with self._lock:
            self._threads = self._threads or concurrent.futures.ThreadPoolExecutor(_CAMERAS)
            return self._threads

    def close(self) -> None:
        """Closes all; they open again on the next read."""
        for part in (self.decoders, self.groups, self.records, self.archive):
            part.close()
        with self._lock:
            threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown()

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
