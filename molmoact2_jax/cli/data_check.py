"""`molmoact2 data check`: examines datasets, reports by severity, writes a quarantine file."""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from molmoact2_jax.cli import dataset, meter
from molmoact2_jax.data import doctor, quarantine, set_doctor, vlm

SOUND, ERRORS, UNREADABLE, OVER_BUDGET = 0, 1, 2, 3

EPILOG = (
    "exit status: 0 no errors, 1 errors within the budget, 2 a dataset cannot be opened, 3 over the budget. With "
    "--quarantine FILE errors are appended to the file, which loaders and later checks honour: a second check is "
    "clean. A multimodal set (JSON lines or Parquet, pictures beside them) needs --checkpoint; training honours "
    "quarantine.jsonl in the directory of all sets."
)


def register(subparsers: Any) -> None:
    """Adds the parser of the command."""
    parser = subparsers.add_parser(
        "check", description="Examines every episode: numbers, times, texts and pictures.", epilog=EPILOG
    )
    dataset.add_arguments(parser, several=True)
    parser.add_argument(
        "--checkpoint", type=pathlib.Path, metavar="DIR", help="tokenizer and processor, for multimodal sets"
    )
    parser.add_argument("--budget", type=float, default=0.05, help="part of the frames with errors that is tolerated")
    parser.add_argument("--every", type=int, default=1, help="decode every n-th frame; 0 decodes none (default: 1)")
    parser.add_argument("--horizon", type=int, default=0, help="frames of an action chunk (default: one second)")
    parser.add_argument("--workers", type=int, default=2, help="threads (default: 2)")
    parser.add_argument("--show", type=int, default=3, help="findings listed for each check (default: 3)")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    """Examines one dataset after another; the worst status counts."""
    if not 0 <= args.budget <= 1 or args.every < 0:
        raise ValueError(f"--budget {args.budget}, --every {args.every}: expected 0 to 1, and 0 or more frames.")
    reports = [_examine_set(args, s) if dataset.holds_records(s) else _examine(args, s) for s in args.dataset]
    if args.json:
        print(json.dumps([report.to_json() for report in reports], indent=1))
        return max(map(_status, reports))
    for report in reports:
        _show(report, args.show)
        if args.quarantine is not None:
            print(f"  {len(report.entries)} entries from this check in {args.quarantine}")
    return max(map(_status, reports))


def _examine(args: argparse.Namespace, spec: str) -> doctor.Report:
    try:
        source = dataset.open_source(args, spec)
    except (ValueError, OSError) as error:
        return doctor.unusable(spec, str(error))
    known = quarantine.read(args.quarantine) if args.quarantine is not None else ()
    options = doctor.Options(args.horizon, args.every, args.workers, args.budget)
    with meter.Meter(f"checking {source.name}", "frames") as progress:
        report = doctor.examine(source, options, known, progress)
    source.close()
    if args.quarantine is not None:
        doctor.quarantine_new(args.quarantine, report)
    return report


def _examine_set(args: argparse.Namespace, spec: str) -> doctor.Report:
    if args.checkpoint is None:
        return doctor.unusable(spec, "a multimodal set, expected --checkpoint DIR to read it as training does.")
    data = vlm.Set.open(pathlib.Path(spec).name, spec, args.cache)
    known = quarantine.read(args.quarantine) if args.quarantine is not None else ()
    options = doctor.Options(args.horizon, args.every, args.workers, args.budget)
    with meter.Meter(f"checking {data.name}", "records") as progress:
        report = set_doctor.examine(data, dataset.encoding(args.checkpoint), options, known, progress)
    if args.quarantine is not None:
        doctor.quarantine_new(args.quarantine, report)
    return report


def _status(report: doctor.Report) -> int:
    if not report.digest:
        return UNREADABLE
    if report.stopped:
        return OVER_BUDGET
    return ERRORS if report.counts["error"] else SOUND


def _show(report: doctor.Report, limit: int) -> None:
    counted = ", ".join(f"{number} {word}{'' if number == 1 else 's'}" for word, number in report.counts.items())
    frames = f", {report.frames} frames" if report.unit == "episode" else ""
    print(f"{report.dataset}: {report.examined} of {report.episodes} {report.unit}s{frames}: {counted}")
    if report.quarantined:
        print(f"  {report.quarantined} {'frames' if frames else 'records'} were quarantined before")
    for (severity, check), found in doctor.grouped(report).items():
        print(f"  {severity:<8} {check}: {len(found)}")
        for finding in found[:limit]:
            print(f"           {finding.place.replace('episode', report.unit)}: {finding.message}")
        if len(found) > limit:
            print(f"           and {len(found) - limit} more")
    if report.stopped:
        print(f"  STOPPED: {report.stopped}")
