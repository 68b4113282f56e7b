"""Examines a multimodal set record by record, exactly as training reads it, and says what to quarantine."""

from __future__ import annotations

import concurrent.futures
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from molmoact2_jax.data import doctor, findings, quarantine, table, vlm
from molmoact2_jax.data.example import Encoding, Skipped
from molmoact2_jax.data.findings import Finding
from molmoact2_jax.data.source import SampleError

_BLOCK = 256  # records examined between two looks at the budget


def examine(
    data: vlm.Set,
    encoding: Encoding,
    options: doctor.Options,
    known: Sequence[quarantine.Entry] = (),
    progress: Callable[[int, int], None] = table.silent,
) -> doctor.Report:
    """Makes every record an example and decodes what it shows.

    Args:
      data: the set.
      encoding: of a checkpoint, whose tokenizer and processor training would use.
      options: `every` n-th record's pictures are decoded; `horizon` has no meaning here.
      known: entries of the quarantine file; records they name are left out.
      progress: called with (records examined, all records).
    """
    left_out = {entry.episode for entry in known if entry.dataset == data.name}
    dataset, total = vlm.VlmDataset(data, encoding, quarantined=left_out), len(data.found)
    found: list[Finding] = []
    first: dict[str, int] = {}
    examined, stopped = 0, ""
    with concurrent.futures.ThreadPoolExecutor(max(1, options.workers)) as pool:
        for start in range(0, total, _BLOCK):
            block = [i for i in range(start, min(start + _BLOCK, total)) if i not in left_out]
            for index, (seen, mark) in zip(block, pool.map(lambda i: _record(data, dataset, i, options.every), block)):
                found += seen
                if mark and first.setdefault(mark, index) != index:
                    found.append(Finding("warning", "duplicate", f"the same as record {first[mark]}", index))
            examined += len(block)
            progress(min(start + _BLOCK, total), total)
            stopped = _over_budget(data.name, found, total, options.budget)
            if stopped:
                break
    spoiled = _spoiled(found)
    entries = [quarantine.Entry(data.name, index, None, reason) for index, reason in spoiled.items()]
    return doctor.Report(
        dataset=data.name,
        digest=data.found.digest,
        episodes=total,
        frames=total,
        examined=examined,
        quarantined=len(left_out),
        found=tuple(findings.ordered(found)),
        entries=tuple(entries),
        lost=len(spoiled) / max(1, total),
        stopped=stopped,
        unit="record",
    )


def _record(data: vlm.Set, dataset: vlm.VlmDataset, index: int, every: int) -> tuple[list[Finding], str]:
    """Returns what is wrong with a record, and a mark that copies share ("" where it cannot be read)."""
    try:
        example = dataset.example(index, 0)
    except Skipped as skipped:
        return [Finding("note", "left out", skipped.reason, index)], ""
    except SampleError as error:
        return [Finding("error", "record", error.reason, index)], ""
    record = data.found[index]
    found = list(_texts(record, index))
    if every and index % every == 0:
        try:
            dataset.pixels(example)
        except SampleError as error:
            found.append(Finding("error", "picture", error.reason, index))
    return found, hashlib.sha256(repr(sorted(record.items())).encode()).hexdigest()


def _texts(record: Mapping[str, Any], index: int) -> Iterator[Finding]:
    for messages in record.get("conversations") or [record["messages"]]:
        for message in messages:
            if not message.get("marks") and not (message.get("content") or "").strip():
                yield Finding("error", "no language", f"the {message['role']} says nothing", index)
                return


def _spoiled(found: Sequence[Finding]) -> dict[int, str]:
    """Returns {record: first reason} of those with errors."""
    reasons: dict[int, str] = {}
    for finding in found:
        if finding.severity == "error" and finding.episode is not None:
            reasons.setdefault(finding.episode, f"{finding.check}: {finding.message}")
    return reasons


def _over_budget(name: str, found: Sequence[Finding], total: int, budget: float) -> str:
    lost = len(_spoiled(found))
    if lost <= budget * total:
        return ""
    return (
        f"{name}: {lost} of {total} records have errors ({lost / total:.1%}), above the budget of {budget:.1%}. "
        "Repair the set, or raise the budget."
    )
