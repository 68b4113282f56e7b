"""`molmoact2 plan`: what a training step needs on devices that need not be here, and which choices fit."""

from __future__ import annotations

import json
import time
from typing import Any

from molmoact2_jax.cli import recipe_flags

# Bytes of memory of one device, from the vendors' data sheets.
MEMORY = {
    "4090": 24e9, "a6000": 48e9, "l40s": 48e9, "a100": 80e9, "h100": 80e9, "h200": 141e9, "b200": 192e9,
    "v4": 32e9, "v5e": 16e9, "v5p": 95e9, "v6e": 32e9, "cpu": 16e9,
}  # fmt: skip
TPUS = ("v4", "v5e", "v5p", "v6e")
GB = 1e9


def run(argv: list[str]) -> int:
    """Parses `--config=FILE --topology=NAME:COUNT [--memory=24,48] [--compile] [--json]`; returns the exit status."""
    from absl import flags

    def define(values: flags.FlagValues) -> None:
        words = f"Devices as NAME:COUNT or NAME:2x4; names: {', '.join(MEMORY)}."
        flags.DEFINE_string("topology", "h200:1", words, flag_values=values)
        flags.DEFINE_list("memory", ["24", "48", "80", "141"], "Sizes of devices to fit into, GB.", flag_values=values)
        flags.DEFINE_bool(
            "compile", False, "Compiles, where the devices or their compiler are here.", flag_values=values
        )
        flags.DEFINE_bool("json", False, "Prints one JSON object.", flag_values=values)

    values = recipe_flags.parse("plan", argv, define)
    name, count, shape = parse_topology(values["topology"].value)
    sizes = [float(size) for size in values["memory"].value]
    found = plan(values["config"].value.to_dict(), name, count, sizes)
    if values["compile"].value:
        found["compiled"] = compile_for(values["config"].value.to_dict(), name, count, shape)
    print(json.dumps(found) if values["json"].value else "\n".join(lines(found)))
    return 0


def parse_topology(text: str) -> tuple[str, int, str]:
    """Returns the device's name, how many there are, and how they are arranged: "v5e:4x4" is ("v5e", 16, "4x4").

    Raises:
      ValueError: an unknown device, or counts that are not positive numbers.
    """
    name, _, shape = text.partition(":")
    counts = (shape or "1").split("x")
    if name not in MEMORY or not all(count.isdigit() and int(count) > 0 for count in counts):
        raise ValueError(f"plan.topology: {text!r}, expected NAME:COUNT with a name of {sorted(MEMORY)}.")
    total = 1
    for count in counts:
        total *= int(count)
    return name, total, shape or "1"


def plan(table: dict[str, Any], name: str, count: int, sizes: list[float]) -> dict[str, Any]:
    """Returns what the model says of a recipe on `count` devices, and which modes fit devices of `sizes` GB."""
    from molmoact2_jax.parallel import mesh as meshes
    from molmoact2_jax.train import memory, recipe, setup

    made = recipe.build(table)
    mesh = meshes.abstract(made.mesh, count)
    prepared = setup.prepare(made, mesh=mesh)
    kinds = memory.model(prepared)
    fits = {}
    for mode in memory.MODES:
        if mode == "expert" and prepared.model.expert is None:
            continue
        chosen = setup.prepare(memory.mode(made, mode), mesh=mesh)
        fits[mode] = {f"{size:g}": memory.largest_batch(chosen, size * GB) for size in sizes}
    begin = time.perf_counter()
    memory.lower(prepared, "tpu" if name in TPUS else "cpu" if name == "cpu" else "cuda")
    flops = memory.flops_per_step(prepared)
    return {
        "topology": f"{name}:{count}", "mesh": dict(mesh.shape), "rows": made.batch_size,
        "accumulation": made.accumulation,
        "model": {"bytes": kinds, "total": sum(kinds.values()), "fits": sum(kinds.values()) < MEMORY[name],
                  "flops_per_step": flops, "largest_rows_per_device": fits},
        "lowered_seconds": time.perf_counter() - begin,
    }  # fmt: skip


def compile_for(table: dict[str, Any], name: str, count: int, shape: str) -> dict[str, Any]:
    """Returns the compiler's numbers, or under "not" why there are none."""
    from molmoact2_jax.train import memory, recipe, setup

    try:
        devices = _devices(name, count, shape)
    except RuntimeError as error:  # what jax raises where it lacks a compiler for the platform
        return {"not": str(error).splitlines()[0]}
    _, needs = memory.compiled(setup.prepare(recipe.build(table), devices))
    return needs._asdict()


def _devices(name: str, count: int, shape: str) -> Any:
    import jax
    from jax.experimental import topologies

    if name in TPUS:
        return topologies.get_topology_desc(f"{name}:{shape}", platform="tpu").devices
    here = [device for device in jax.devices() if name in device.device_kind.lower()]
    if len(here) < count:
        raise RuntimeError(f"{len(here)} of {count} devices {name!r} are here, and only TPUs can be compiled for apart")
    return here[:count]


def lines(found: dict[str, Any]) -> list[str]:
    """Returns the plan as lines of text."""
    model = found["model"]
    mesh = " x ".join(f"{axis}={size}" for axis, size in found["mesh"].items())
    text = [f"{found['topology']}  {mesh}  {found['rows']} rows, accumulation {found['accumulation']}", ""]
    text += ["GB per device (model)"]
    text += [f"{value / GB:10.2f}  {kind}" for kind, value in model["bytes"].items()]
    text += [f"{model['total'] / GB:10.2f}  in all: {'fits' if model['fits'] else 'does not fit'}", ""]
    text += [f"FLOPs per step (model): {model['flops_per_step']:.3g}", ""]
    sizes = list(next(iter(model["largest_rows_per_device"].values())))
    text += ["most rows per device (model), 0 = does not fit", "  mode    " + "".join(f"{s + ' GB':>9}" for s in sizes)]
    for mode, best in model["largest_rows_per_device"].items():
        text += [f"  {mode:8}" + "".join(f"{rows:>9}" for rows in best.values())]
    text += ["", f"lowered in {found['lowered_seconds']:.1f} s"]
    done = found.get("compiled")
    if done is not None and "not" in done:
        text += [f"not compiled: {done['not']}"]
    elif done is not None:
        text += [f"{done['total'] / GB:10.2f}  GB per device in all (compiled), in {done['seconds']:.0f} s"]
    return text
