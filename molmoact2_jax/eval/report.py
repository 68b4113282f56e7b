"""A page that tells what a policy learned: success beside its controls, pictures, losses, errors, costs.

Every number comes from a file that a command wrote; what was not measured is named with the command that measures it.
"""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from molmoact2_jax.eval import report_inputs, report_page, report_plots
from molmoact2_jax.eval.report_inputs import Found, Json, Places
from molmoact2_jax.train import progress

COMMANDS = {
    "training": "molmoact2 train --config=FILE --config.run_dir=RUN; give its directory as --run",
    "rollout": "molmoact2 eval rollout CHECKPOINT --tasks ... --norm-tag TAG --out DIR; give it as --rollout",
    "swapped instructions": "molmoact2 eval rollout ... --swap TASK,TASK --out DIR; give it as --control",
    "random weights": "molmoact2 eval rollout ... --random-weights 0 --out DIR; give it as --random",
    "open loop": "molmoact2 eval open-loop CHECKPOINT DATASET --norm-tag TAG --plots --out DIR; give it as --open-loop",
    "time and memory": "python -m molmoact2_jax.eval.timings FILE PART COMMAND...; give the file as --timings",
}
FILM_BYTES = 400_000  # larger films stay files of their own


@dataclasses.dataclass(frozen=True)
class Report:
    """The page, and the names of its parts (`COMMANDS`) that were not measured."""

    html: str
    missing: tuple[str, ...]


def build(places: Places, title: str = "") -> Report:
    """Makes the page.

    Args:
      places: of the files.
      title: of the page; "" names the simulator.

    Raises:
      ValueError: see `report_inputs.read`.
    """
    found = report_inputs.read(places)
    given = {
        "training": found.metrics,
        "rollout": found.rollout,
        "swapped instructions": found.control,
        "random weights": found.random,
        "open loop": found.open_loop,
        "time and memory": found.timings,
    }
    heading = title or f"MolmoAct2 in {found.rollout['environment']['env'] if found.rollout else 'a simulator'}"
    parts = [_head(found, heading), _success(found), _control(found), _random(found), _scenes(found, places)]
    parts += [_training(found), _open_loop(found, places), _costs(found), _protocol(found)]
    page = report_page.page(heading, [part for part in parts if part])
    return Report(page, tuple(name for name, value in given.items() if value is None))


def _missing(name: str) -> str:
    return report_page.missing(name, COMMANDS[name])


def percent(share: float) -> str:
    """Writes a share of 1 as a percentage."""
    return f"{share:.0%}"


def counted(share: Json) -> str:
    """Writes successes and episodes as a file counts them."""
    return f"{share['successes']}/{share['episodes']}"


def between(share: Json) -> str:
    """Writes the confidence interval of a share."""
    return f"{percent(share['low'])} to {percent(share['high'])}"


def _head(found: Found, title: str) -> str:
    tiles = [
        report_page.tile(percent(each["success"]["rate"]), label, _tile_note(each), style)
        for label, each, style in (
            ("success of the policy", found.rollout, "policy"),
            ("told the other task", found.control, "control"),
            ("random weights", found.random, "random"),
        )
        if each is not None
    ]
    when = _when(found.rollout) if found.rollout else ""
    shown = f'<div class="tiles">{"".join(tiles)}</div>' if tiles else ""
    return f"<header><h1>{report_page.text(title)}</h1>{report_page.paragraph(when, 'soft')}{shown}</header>"


def _when(result: Json) -> str:
    machine = result["machine"]
    versions = f"molmoact2-jax {machine['molmoact2-jax']}, jax {machine['jax']}"
    return f"Rolled out on {machine['date'][:10]} on {machine['devices']}, {machine['cpus']} cores, with {versions}."


def _tile_note(result: Json) -> str:
    share, tasks = result["success"], len(result["tasks"])
    return f"{counted(share)} episodes, {tasks} {'task' if tasks == 1 else 'tasks'}; 95% interval {between(share)}"


def _success(found: Found) -> str:
    if found.rollout is None:
        return report_page.section("Success", _missing("rollout"))
    result, protocol = found.rollout, found.rollout["protocol"]
    words = (
        f"Closed loop on {len(protocol['seeds'])} seeds of each task ({spans(protocol['seeds'])}), at most "
        f"{protocol['horizon']} decisions; {protocol['executed']} actions of each plan are carried out. The simulator "
        "judges success. The line shows the rate within its 95% interval (Wilson)."
    )
    rows = _share_rows(result, "policy")
    shares = [*result["tasks"].values(), result["success"]]
    for row, share in zip(rows, shares, strict=True):
        row.insert(5, "" if share["mean_decisions"] is None else f"{share['mean_decisions']:.0f}")
    head = ("task", "instruction", "success", "rate", "95% interval", "decisions", "")
    table = report_page.table(head, rows, numbers=(2, 3, 4, 5), total=True)
    return report_page.section("Success", report_page.paragraph(words), table)


def spans(numbers: list[int]) -> str:
    """Writes numbers as ranges: 5000-5019, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def _share_rows(result: Json, style: str) -> list[list[str]]:
    told = {episode["task"]: episode["instruction"] for episode in result["episodes"]}
    rows = [*((name, told.get(name, ""), share) for name, share in result["tasks"].items())]
    return [_share_row(*row, style) for row in [*rows, ("all", "", result["success"])]]


def _share_row(name: str, told: str, share: Json, style: str) -> list[str]:
    cells = [report_page.text(cell) for cell in (name, told, counted(share), percent(share["rate"]), between(share))]
    return [*cells, report_page.track(share["rate"], share["low"], share["high"], style)]


def _control(found: Found) -> str:
    title = "Control: the instruction of another task"
    if found.control is None:
        return report_page.section(title, _missing("swapped instructions"))
    words = (
        "The same policy and the same scenes, but each task is told what to do in other words than its own. Success "
        "is judged on the task's own goal, so a policy that reads its instruction fails here."
    )
    own = found.rollout["tasks"] if found.rollout else {}
    rows = _share_rows(found.control, "control")
    names = [*found.control["tasks"], "all"]
    for name, row in zip(names, rows, strict=True):
        row.insert(2, report_page.text(counted(own[name])) if name in own else "")
    head = ("task", "told", "own words", "success", "rate", "95% interval", "")
    table = report_page.table(head, rows, numbers=(2, 3, 4, 5), total=True)
    return report_page.section(title, report_page.paragraph(words), table, _note(found, found.control))


def _random(found: Found) -> str:
    title = "Control: random weights"
    if found.random is None:
        return report_page.section(title, _missing("random weights"))
    seed = found.random["policy"]["random_weights"]
    words = f"The same model with the weights that training starts from (seed {seed}): what luck and the task give."
    head = ("task", "instruction", "success", "rate", "95% interval", "")
    table = report_page.table(head, _share_rows(found.random, "random"), numbers=(2, 3, 4), total=True)
    return report_page.section(title, report_page.paragraph(words), table, _note(found, found.random))


def _note(found: Found, other: Json) -> str:
    apart = report_inputs.differences(found.rollout, other) if found.rollout else []
    return report_page.paragraph("Not measured alike: " + "; ".join(apart), "soft") if apart else ""


def _scenes(found: Found, places: Places) -> str:
    """Shows the first success and the first failure of each task for which pictures were kept."""
    if found.rollout is None or places.rollout is None:
        return ""
    shown = []
    for task in found.rollout["tasks"]:
        episodes = [e for e in found.rollout["episodes"] if e["task"] == task and e.get("strip")]
        for outcome in (True, False):
            first = next((e for e in episodes if e["success"] is outcome), None)
            if first is not None and (places.rollout / first["strip"]).is_file():
                shown.append(report_page.picture(places.rollout / first["strip"], _caption(first), "strip"))
    films = "".join(_films(found.rollout, places.rollout))
    if not shown and not films:
        return ""
    words = "What the policy saw when it planned, from the first picture to the last: one success and one failure."
    wrapped = f'<div class="films">{films}</div>' if films else ""
    return report_page.section("Episodes", report_page.paragraph(words), wrapped, *shown)


def _caption(episode: Json) -> str:
    outcome = "success" if episode["success"] else "failure"
    return f"{episode['task']}, seed {episode['seed']}: {outcome} after {episode['decisions']} decisions"


def _films(result: Json, directory: pathlib.Path) -> list[str]:
    """Returns the first film of a success of each task, if it is small."""
    films, seen = [], set()
    for episode in result["episodes"]:
        path = directory / f"{episode['task']}-{episode['seed']}.webp"
        if episode["success"] and episode["task"] not in seen and path.is_file():
            if path.stat().st_size <= FILM_BYTES:
                films.append(report_page.picture(path, episode["instruction"], "film"))
            seen.add(episode["task"])
    return films


def _training(found: Found) -> str:
    if found.metrics is None:
        return report_page.section("Training", _missing("training"))
    last = next(line for line in reversed(found.metrics) if "loss" in line)
    names = {"steps": "step", "loss": "loss", "seconds per step": "step_seconds"}
    names |= {"tokens per second per device": "tokens_per_second_per_device", "resident memory, GB": "host_gb"}
    names |= {"device memory, GB": "device_peak_gb", "seconds of compilation": "compile_seconds"}
    values = {label: f"{last[key]:.4g}" for label, key in names.items() if last.get(key) is not None}
    values["steps"] = str(last["step"])
    held = [line for line in found.metrics if any(key.startswith(("validation/", "open_loop/")) for key in line)]
    for name, value in (held[-1] if held else {}).items():
        if name.startswith(("validation/loss/", "open_loop/")) and value:
            values[f"{name}, step {held[-1]['step']}"] = f"{value:.4g}"
    drawn = report_page.drawing(report_plots.training(found.metrics), "Losses by step; the thin line is not smoothed.")
    return report_page.section("Training", drawn, report_page.facts(values))


def _open_loop(found: Found, places: Places) -> str:
    title = "Predicted against recorded actions"
    if found.open_loop is None or places.open_loop is None:
        return report_page.section(title, _missing("open loop"))
    result = found.open_loop
    words = (
        f"{result['frames']} frames of recorded episodes ({result['episodes']} in all), {result['horizon']} "
        f"steps ahead. Normalised error {result['normalised']:.4g}; always predicting the mean action gives "
        f"{result['normalised_constant']:.4g}."
    )
    rows = [
        [report_page.text(name), *(f"{value:.4g}" for value in (c["error"], c["constant"], c["spread"]))]
        for name, c in result["channels"].items()
    ]
    head = ("channel", "mean error", "always the mean", "spread over seeds")
    plots = sorted(places.open_loop.glob("episode_*.png")) + sorted(places.open_loop.glob("horizon.png"))
    figures = [
        report_page.picture(p, p.stem.replace("_", " "), "plot narrow" if p.stem == "horizon" else "plot")
        for p in plots
    ]
    table = report_page.table(head, rows, numbers=(1, 2, 3))
    none = "" if figures else report_page.missing("drawings of actions", COMMANDS["open loop"])
    return report_page.section(title, report_page.paragraph(words), table, none, *figures)


def _costs(found: Found) -> str:
    title = "Time and memory"
    if found.timings is None:
        return report_page.section(title, _missing("time and memory"))
    rows = [_cost(name, part) for name, part in found.timings.items()]
    seconds = sum(part["seconds"] for part in found.timings.values())
    peak = max(part["peak_bytes"] for part in found.timings.values())
    rows.append(_cost("all", dict(seconds=seconds, peak_bytes=peak, runs=1)))
    table = report_page.table(("part", "time", "seconds", "largest process, GB"), rows, numbers=(1, 2, 3), total=True)
    return report_page.section(title, table)


def _cost(name: str, part: Mapping[str, float]) -> list[str]:
    label = name if part["runs"] == 1 else f"{name} (in {part['runs']:.0f} runs)"
    seconds = part["seconds"]
    return [
        report_page.text(label),
        progress.duration(seconds),
        f"{seconds:.1f}",
        f"{part['peak_bytes'] / 1e9:.2f}" if part["peak_bytes"] else "",
    ]


def _protocol(found: Found) -> str:
    """Shows all that is needed to repeat the rollouts, folded."""
    named = {"The policy": found.rollout, "Swapped instructions": found.control, "Random weights": found.random}
    kept = ("policy", "protocol", "environment", "machine", "seconds")
    folded = [
        report_page.folded(name, json.dumps({key: result[key] for key in kept}, indent=1))
        for name, result in named.items()
        if result is not None
    ]
    return report_page.section("Protocol and versions", *folded) if folded else ""


def summary(report: Report, places: Places) -> dict[str, Any]:
    """Returns what a program may want to know of a report: its parts' places, and those missing."""
    given = {name: str(value) for name, value in dataclasses.asdict(places).items() if value is not None}
    return dict(given=given, missing={name: COMMANDS[name] for name in report.missing}, bytes=len(report.html))
