"""How well a dataset fits the statistics of a checkpoint's tag: what is clipped, what is dead, which units differ."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from molmoact2_jax.data import norm_stats, normalize, stats
from molmoact2_jax.data.findings import Finding

EXPECTED = 0.02  # part outside q01..q99 of data from the same distribution
OUTSIDE_WARNING, OUTSIDE_ERROR = 0.10, 0.50
NARROW = 0.05  # a channel that uses less of its interval is suspected of other units
OVERLAP = 0.3  # of two intervals, as intersection over union, above which a conversion explains them

Convert = Callable[[np.ndarray], np.ndarray]

SUSPECTS: tuple[tuple[str, Convert], ...] = (
    ("degrees, where the tag has radians", np.radians),
    ("radians, where the tag has degrees", np.degrees),
    ("millimetres, where the tag has metres", lambda x: x / 1000),
    ("metres, where the tag has millimetres", lambda x: x * 1000),
    ("percent, where the tag has fractions", lambda x: x / 100),
    ("fractions, where the tag has percent", lambda x: x * 100),
    ("of the opposite sign", np.negative),
    ("shifted by -90 degrees", lambda x: x + 90),
    ("shifted by +90 degrees", lambda x: x - 90),
    ("of the opposite sign and shifted by 90 degrees", lambda x: 90 - x),
    ("0 to 1, where the tag has -1 to 1", lambda x: 2 * x - 1),
    ("-1 to 1, where the tag has 0 to 1", lambda x: (x + 1) / 2),
)


@dataclasses.dataclass(frozen=True)
class ChannelFit:
    """One channel of a dataset against its tag.

    Attributes:
      kind: "action" or "state".
      channel: index; `name`: the dataset's word for it.
      low, high: the dataset's own q01 and q99, robot units; `tag_low`, `tag_high`: the tag's.
      outside: part of the frames outside the tag's interval, 0 to 1; training clips them.
      suspect: what the numbers would be if a conversion explains the misfit, in words; "" where none does.
    """

    kind: str
    channel: int
    name: str
    low: float
    high: float
    tag_low: float
    tag_high: float
    outside: float
    suspect: str


@dataclasses.dataclass(frozen=True)
class FitReport:
    """All channels and what follows from them."""

    channels: tuple[ChannelFit, ...]
    findings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns both as JSON values."""
        return {
            "channels": [dataclasses.asdict(channel) for channel in self.channels],
            "findings": [finding.to_json() for finding in self.findings],
        }


def fit(numbers: stats.Numbers, tag: norm_stats.Tag, mode: str) -> FitReport:
    """Compares the numbers of a dataset with a tag's statistics.

    Args:
      numbers: of the dataset; joints are brought into the tag's convention first, where it has one.
      tag: of the checkpoint.
      mode: of `norm_stats.MODES`.
    """
    channels: list[ChannelFit] = []
    findings = [*_facts(numbers, tag)]
    for kind in ("action", "state"):
        known, names = getattr(tag, kind), getattr(numbers, f"{kind}_names")
        if known is None:
            findings.append(Finding("note", "no statistics", f"the tag has none for the {kind}: it passes through raw"))
            continue
        if known.width != len(names):
            findings.append(_width(kind, names, known))
            continue
        values = normalize.to_model_joints(getattr(numbers, kind), tag)
        fits = [_channel(kind, c, values[:, c], known, mode) for c in range(known.width)]
        named = [dataclasses.replace(fit, name=name) for fit, name in zip(fits, names, strict=True)]
        channels += named
        findings += [*_names(kind, names, known), *_scales(kind, known, mode), *_misfits(named, known)]
        findings += _passed_through(kind, values, known)
    findings += _convention(numbers, tag)
    return FitReport(tuple(channels), tuple(findings))


def bounds(known: norm_stats.TagStats, mode: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns f64[C] and f64[C], the interval of each channel that the mode maps to -1..1; q01..q99 where it has none.

    Raises:
      ValueError: the statistics lack those fields.
    """
    low, high = normalize.BOUNDS.get(mode, ("q01", "q99"))
    found = getattr(known, low), getattr(known, high)
    if None in found:
        raise ValueError(f"fit report: the tag has no {low} and {high}, expected them. Compute its statistics again.")
    return np.asarray(found[0], np.float64), np.asarray(found[1], np.float64)


def _channel(kind: str, channel: int, values: np.ndarray, known: norm_stats.TagStats, mode: str) -> ChannelFit:
    lows, highs = bounds(known, mode)
    interval = float(lows[channel]), float(highs[channel])
    low, high = (float(q) for q in np.quantile(values.astype(np.float64), (0.01, 0.99)))
    outside = _outside(values, interval)
    suspect = _suspect(values, (low, high), interval, outside)
    return ChannelFit(kind, channel, "", low, high, *interval, outside, suspect)


def _outside(values: np.ndarray, interval: tuple[float, float]) -> float:
    low, high = np.asarray(interval, values.dtype)  # a bound that was float32 data counts as inside
    return float(np.mean((values < low) | (values > high)))


def _suspect(values: np.ndarray, own: tuple[float, float], tag: tuple[float, float], outside: float) -> str:
    """Names the conversion that makes a channel fit far better; "" if it fits as it is or none does."""
    if tag[1] <= tag[0] or (outside < OUTSIDE_WARNING and not _narrow(own, tag)):
        return ""
    ends = np.asarray(own, np.float64)
    overlaps = {words: _overlap(np.sort(convert(ends)), tag) for words, convert in SUSPECTS}
    best = max(overlaps, key=overlaps.__getitem__)
    # Two conversions can nearly tie (57 against 100); the better one is named, a person knows which it is.
    return best if overlaps[best] > max(OVERLAP, 2 * _overlap(ends, tag)) else ""


def _narrow(own: tuple[float, float], tag: tuple[float, float]) -> bool:
    return 0 < own[1] - own[0] < NARROW * (tag[1] - tag[0])


def _overlap(a: np.ndarray, b: tuple[float, float]) -> float:
    union = max(a[1], b[1]) - min(a[0], b[0])
    return float(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) / union) if union > 0 else 0.0


def _width(kind: str, names: tuple[str, ...], known: norm_stats.TagStats) -> Finding:
    told = f" {list(known.names)}" if known.names else ""
    message = f"{kind} has {len(names)} channels {list(names)}, the tag {known.width}{told}"
    return Finding("error", "width", message)


def _names(kind: str, names: tuple[str, ...], known: norm_stats.TagStats) -> Iterator[Finding]:
    if known.names and known.names != names:
        pairs = [f"{c}: {own} / {theirs}" for c, (own, theirs) in enumerate(zip(names, known.names)) if own != theirs]
        yield Finding("warning", "names", f"{kind} channels, dataset / tag: {', '.join(pairs)}. Check their order")


def _scales(kind: str, known: norm_stats.TagStats, mode: str) -> Iterator[Finding]:
    for words in normalize.dead_scales(known, mode):
        yield Finding("error", "dead scale", f"{kind} {words}")


def _misfits(fits: list[ChannelFit], known: norm_stats.TagStats) -> Iterator[Finding]:
    """Units first, once per suspicion; then what no conversion explains."""
    for words, _ in SUSPECTS:
        found = [f for f in fits if f.suspect == words]
        if found:
            listed = ", ".join(f"{f.channel} ({f.name})" for f in found)
            message = f"{found[0].kind} channels {listed} look {_as(words)}"
            yield Finding("error" if len(found) * 2 >= len(fits) else "warning", "units", message)
    for f in fits:
        passed = known.mask is not None and not known.mask[f.channel]
        constant = known.min is not None and known.max is not None and known.min[f.channel] == known.max[f.channel]
        if constant and f.high > f.low:
            message = (
                f"{f.kind} channel {f.channel} ({f.name}) moves, but the tag has it constant: it is always read as 0"
            )
            yield Finding("warning", "constant", message)
        elif f.outside > OUTSIDE_WARNING and not f.suspect and not passed and not constant:
            severity = "error" if f.outside > OUTSIDE_ERROR else "warning"
            message = (
                f"{f.kind} channel {f.channel} ({f.name}): {f.outside:.1%} outside "
                f"[{f.tag_low:.4g}, {f.tag_high:.4g}], about {EXPECTED:.0%} expected; "
                f"own range [{f.low:.4g}, {f.high:.4g}]"
            )
            yield Finding(severity, "outside", message)
        elif _narrow((f.low, f.high), (f.tag_low, f.tag_high)) and not f.suspect and not passed:
            message = (
                f"{f.kind} channel {f.channel} ({f.name}) moves over {(f.high - f.low) / (f.tag_high - f.tag_low):.1%} "
                f"of [{f.tag_low:.4g}, {f.tag_high:.4g}] only: own range [{f.low:.4g}, {f.high:.4g}]"
            )
            yield Finding("warning", "narrow", message)


def _as(words: str) -> str:
    return words if words.startswith(("of the", "shifted")) else f"like {words}"


def _passed_through(kind: str, values: np.ndarray, known: norm_stats.TagStats) -> Iterator[Finding]:
    """Channels that are not normalised must lie in -1..1 by themselves; and grippers may be mirrored."""
    for channel in range(known.width):
        column, gripper = values[:, channel], "gripper" in known.name(channel).lower()
        if known.mask is not None and not known.mask[channel]:
            gripper = True
            if np.abs(column).max() > 1 + 1e-6:
                message = (
                    f"{kind} channel {known.name(channel)} passes through raw and is {column.min():.4g} to "
                    f"{column.max():.4g}, outside -1 to 1. Convert it, or set normalize_gripper"
                )
                yield Finding("error", "gripper", message)
        if gripper and _mirrored(column, known, channel):
            message = (
                f"{kind} channel {known.name(channel)}: mean {column.mean():.3g}, in the tag "
                f"{known.mean[channel]:.3g}: perhaps open and closed are exchanged"  # type: ignore[index]
            )
            yield Finding("warning", "gripper", message)


def _mirrored(column: np.ndarray, known: norm_stats.TagStats, channel: int) -> bool:
    """Whether the mean lies at the other end of the same range."""
    if known.mean is None or known.min is None or known.max is None or known.max[channel] <= known.min[channel]:
        return False
    low, span = known.min[channel], known.max[channel] - known.min[channel]
    own, tag = (float(column.mean()) - low) / span, (known.mean[channel] - low) / span
    return abs((1 - own) - tag) < 0.15 and abs(own - tag) > 0.3


def _facts(numbers: stats.Numbers, tag: norm_stats.Tag) -> Iterator[Finding]:
    """What the tag assumes besides ranges: rate, cameras, untouched statistics."""
    if tag.horizon and abs(numbers.fps / tag.horizon - 1) > 0.1:
        message = (
            f"{numbers.fps:g} frames per second, the tag's chunk of {tag.horizon} steps is one second of {tag.horizon}"
        )
        yield Finding("warning", "rate", message)
    if tag.cameras and len(tag.cameras) != len(numbers.cameras):
        yield Finding(
            "warning", "cameras", f"cameras {list(numbers.cameras)}, the tag has {list(tag.cameras)} in this order"
        )
    if stats.intact(tag) is False:
        message = "the tag's statistics are not those its digest was made of: the file was edited or merged elsewhere"
        yield Finding("warning", "provenance", message)
    quantiles = (tag.provenance or {}).get("quantiles", stats.EXACT)
    if quantiles != stats.EXACT:
        yield Finding("note", "provenance", f"the tag's quantiles are {quantiles}")


def _convention(numbers: stats.Numbers, tag: norm_stats.Tag) -> Iterator[Finding]:
    """Tells absolute targets from increments: the former go with the state, the latter do not."""
    width = min(numbers.action.shape[1], numbers.state.shape[1])
    if not tag.control or not width or len(numbers.action) < 3:
        return
    with np.errstate(invalid="ignore", divide="ignore"):
        followed = [float(np.corrcoef(numbers.action[:, c], numbers.state[:, c])[0, 1]) for c in range(width)]
    known = [r for r in followed if not math.isnan(r)]
    median = float(np.median(known)) if known else math.nan
    if "absolute" in tag.control and median < 0.5:
        message = (
            f"actions correlate with the state by {median:.2f}, so they look relative; the tag says {tag.control!r}"
        )
        yield Finding("warning", "convention", message)
    if "delta" in tag.control and median > 0.95:
        message = (
            f"actions correlate with the state by {median:.2f}, so they look absolute; the tag says {tag.control!r}"
        )
        yield Finding("warning", "convention", message)
