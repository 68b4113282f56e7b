"""What readers keep open. Sources that share one stay within its limits, however many datasets a run mixes."""

from __future__ import annotations

import dataclasses

from molmoact2_jax.data import archive, row_groups, tfrecord, video


@dataclasses.dataclass
class OpenFiles:
    """Open files, decoders and the records read last. It pickles empty, and shared if its sources pickle together."""

    decoders: video.Decoders = dataclasses.field(default_factory=video.Decoders)
    groups: row_groups.RowGroups = dataclasses.field(default_factory=row_groups.RowGroups)
    records: tfrecord.Files = dataclasses.field(default_factory=tfrecord.Files)
    archive: archive.Archive = dataclasses.field(default_factory=archive.Archive)

    def close(self) -> None:
        """Closes all; they open again on the next read."""
        for part in (self.decoders, self.groups, self.records, self.archive):
            part.close()
