"""Statistics and fit reports as tables on standard output."""

from __future__ import annotations

import pathlib

from molmoact2_jax.data import fit_report, norm_stats, normalize


def show(name: str, tag: norm_stats.Tag, mode: str) -> None:
    """Prints the statistics of a robot, channel by channel, and its dead scales."""
    assert tag.provenance is not None
    print(f"{name}: quantiles {tag.provenance['quantiles']}, digest {tag.provenance['digest'][:16]}")
    for kind in ("action", "state"):
        found = getattr(tag, kind)
        fields = ("min", "q01", "q50", "q99", "max", "mean", "std")
        print(f"{kind}, {found.count} frames\n  {'':<24}" + "".join(f"{field:>11}" for field in fields))
        for c in range(found.width):
            row = "".join(f"{getattr(found, field)[c]:>11.4g}" for field in fields)
            print(f"  {found.name(c):<24}{row}{'' if found.mask[c] else '  passes through raw'}")
        for words in normalize.dead_scales(found, mode):
            print(f"  error    dead scale: {words}")


def show_fit(dataset_name: str, checkpoint: pathlib.Path, report: fit_report.FitReport) -> None:
    """Prints how the channels of a dataset lie in the intervals of a checkpoint, and what is wrong."""
    print(f"fit of {dataset_name} to {checkpoint}")
    for channel in report.channels:
        own, tag = f"[{channel.low:.4g}, {channel.high:.4g}]", f"[{channel.tag_low:.4g}, {channel.tag_high:.4g}]"
        print(
            f"  {channel.kind:<7}{channel.channel:>2} {channel.name:<20} {channel.outside:>7.2%} outside  "
            f"own {own:<22} tag {tag:<22} {channel.suspect}"
        )
    for finding in report.findings:
        print(f"  {finding.severity:<8} {finding.check}: {finding.message}")
    if not report.findings:
        print("  nothing to remark")
