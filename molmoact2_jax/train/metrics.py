"""What a run reports besides its losses: time, throughput, memory, compilations."""

from __future__ import annotations

import logging
import os
import pathlib
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.monitoring

from molmoact2_jax.train import flops

DIVISORS = {"flow": "sum/chunks", "gate": "sum/gated", "noise": "sum/codes"}  # of sums over rows, by kind
_log = logging.getLogger(__name__)

_COMPILED = "/jax/core/compile/backend_compile_duration"


class Window:
    """Means of what happened since the last report.

    `add` keeps the scalars of a step without waiting for the devices; `report` fetches them, and starts anew.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._reset()

    def _reset(self) -> None:
        self._start, self._steps = self._clock(), list[Mapping[str, Any]]()

    def add(self, values: Mapping[str, Any]) -> None:
        """Adds scalars of one step, numbers or arrays on a device."""
        self._steps.append(dict(values))

    def report(self) -> dict[str, float]:
        """Returns the summarised mean of each value, and `step_seconds` by the clock; empty without a step."""
        if not self._steps:
            return {}
        fetched, taken = jax.device_get(self._steps), len(self._steps)
        names = sorted({name for step in fetched for name in step})
        known = {name: [float(step[name]) for step in fetched if name in step] for name in names}
        seconds = (self._clock() - self._start) / taken
        self._reset()
        return summarize({n: sum(v) / len(v) for n, v in known.items()}) | {"step_seconds": seconds}


def summarize(values: Mapping[str, float]) -> dict[str, float]:
    """Turns the sums over rows that a step returns into means.

    `sum/entropy/STYLE` is divided by `sum/weight/STYLE` to `entropy/STYLE`, others by what `DIVISORS` says of their
    first word; a mean over nothing is left out. Other values stay.
    """
    means = {name: value for name, value in values.items() if not name.startswith("sum/")}
    for name, value in values.items():
        kind, _, rest = name.removeprefix("sum/").partition("/")
        divisor = f"sum/weight/{rest}" if kind == "entropy" else DIVISORS.get(kind)
        if name.startswith("sum/") and divisor and values[divisor] > 0:
            means[f"{kind}/{rest}"] = value / values[divisor]
    return means | ({"chunks": values["sum/chunks"]} if "sum/chunks" in values else {})


def throughput(step_seconds: float, tokens: float, step_flops: float, devices: Sequence[Any]) -> dict[str, float]:
    """Rates per device.

    Args:
      step_seconds: wall time of a step.
      tokens: of the global batch, padding not counted.
      step_flops: of `flops.step`, for the global batch.
      devices: all devices of the run.

    Returns:
      `tokens_per_second_per_device`, `model_tflops_per_device`, and where the device's peak is known `mfu`, the model
      FLOPs utilisation = model FLOPs per step / (seconds per step * devices * peak bfloat16 FLOP/s of a device).
    """
    rates = {
        "tokens_per_second_per_device": tokens / step_seconds / len(devices),
        "model_tflops_per_device": step_flops / step_seconds / len(devices) / 1e12,
    }
    peak = flops.peak(devices[0].device_kind)
    return rates | ({"mfu": step_flops / (step_seconds * len(devices) * peak)} if peak else {})


def memory() -> dict[str, float]:
    """Resident memory of this process and, where the device tells, the most that one device has held, in GB."""
    statm = pathlib.Path("/proc/self/statm")
    if statm.exists():
        resident = int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    else:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes on macOS, and the peak
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if "peak_bytes_in_use" in s]
    return {"host_gb": resident / 1e9} | ({"device_peak_gb": max(peaks) / 1e9} if peaks else {})


class Compilations:
    """Counts programs that jax compiles and the seconds it takes, and raises an alarm for a function that should not.

    A context manager: it listens from entry to exit.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.counts: dict[str, int] = {}
        self._settled: dict[str, int] = {}

    def __enter__(self) -> Compilations:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **about: str | int) -> None:
        if event == _COMPILED:
            name = str(about.get("fun_name", "unknown")).removeprefix("jit(").removesuffix(")")
            self.seconds += duration_secs
            self.counts[name] = self.counts.get(name, 0) + 1

    def settle(self, *names: str) -> None:
        """Declares that these functions have compiled all they need."""
        self._settled = {name: self.counts.get(name, 0) for name in names}

    def alarm(self) -> list[str]:
        """Logs and returns the settled functions that have compiled again since."""
        again = [name for name, count in self._settled.items() if self.counts.get(name, 0) > count]
        for name in again:
            _log.error(
                "metrics: %s was compiled again (%d times in all), which stalls every device; its inputs changed shape "
                "or dtype. Keep the rows of all batches alike.", name, self.counts[name],
            )  # fmt: skip
            self._settled[name] = self.counts[name]
        return again
