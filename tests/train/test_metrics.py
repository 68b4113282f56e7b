import logging
import types

import jax
import jax.numpy as jnp
import numpy as np

from molmoact2_jax.train import metrics


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_a_window_reports_means_and_starts_anew():
    clock = Clock()
    window = metrics.Window(clock)
    for loss, wait in ((1.0, 0.2), (3.0, 0.0)):
        clock.now += 2.0
        window.add({"loss": jnp.float32(loss), "data_seconds": wait})
    assert window.report() == {"loss": 2.0, "data_seconds": 0.1, "step_seconds": 2.0}
    assert window.report() == {}
    clock.now += 5.0
    window.add({"loss": 7.0})
    assert window.report() == {"loss": 7.0, "step_seconds": 5.0}


def test_a_value_that_some_steps_lack_is_averaged_over_those_that_have_it():
    window = metrics.Window()
    for step in ({"loss": 1.0, "vlm": 4.0}, {"loss": 3.0}):
        window.add(step)
    report = window.report()
    assert (report["loss"], report["vlm"]) == (2.0, 4.0)


def test_sums_become_means_over_their_own_weight():
    values = {
        "loss": 1.5, "sum/entropy/robot_action": 6.0, "sum/weight/robot_action": 3.0, "sum/entropy/vlm": 0.0,
        "sum/weight/vlm": 0.0, "sum/flow/time": 2.0, "sum/chunks": 5.0, "sum/gate/mean": 0.5, "sum/gated": 10.0,
        "sum/noise/replaced": 0.0, "sum/codes": 0.0,
    }  # fmt: skip
    assert metrics.summarize(values) == {
        "loss": 1.5, "entropy/robot_action": 2.0, "flow/time": 0.4, "chunks": 5.0, "gate/mean": 0.05,
    }  # fmt: skip


def test_utilisation_is_model_flops_over_what_the_devices_could_do():
    devices = [types.SimpleNamespace(device_kind="NVIDIA H200")] * 4
    rates = metrics.throughput(2.0, 8000, 0.4 * 989e12 * 4 * 2.0, devices)
    np.testing.assert_allclose(rates["mfu"], 0.4)
    assert rates["tokens_per_second_per_device"] == 1000
    np.testing.assert_allclose(rates["model_tflops_per_device"], 0.4 * 989)


def test_utilisation_is_absent_for_a_device_of_unknown_peak():
    assert "mfu" not in metrics.throughput(1.0, 10, 1e9, jax.devices())


def test_memory_grows_with_what_is_held():
    before = metrics.memory()["host_gb"]
    held = np.ones(30_000_000)  # 0.24 GB, touched
    assert metrics.memory()["host_gb"] - before > 0.2
    assert held[0] == 1


def test_device_peaks_are_reported_where_the_device_tells(monkeypatch):
    stats = [types.SimpleNamespace(memory_stats=lambda b=b: {"peak_bytes_in_use": b}) for b in (3e9, 5e9)]
    monkeypatch.setattr(jax, "local_devices", lambda: stats)
    assert metrics.memory()["device_peak_gb"] == 5.0


def test_a_step_that_compiles_again_raises_the_alarm_once(caplog):
    @jax.jit
    def train_step(x):
        return x + 1

    with metrics.Compilations() as compilations, caplog.at_level(logging.ERROR):
        train_step(jnp.ones(3))
        assert compilations.counts["train_step"] == 1 and compilations.seconds > 0
        compilations.settle("train_step")
        train_step(jnp.ones(3))
        assert compilations.alarm() == []
        train_step(jnp.ones(4))
        assert compilations.alarm() == ["train_step"]
        assert compilations.alarm() == []
    assert "train_step was compiled again (2 times in all)" in caplog.text
    train_step(jnp.ones(5))
    assert compilations.counts["train_step"] == 2  # it no longer listens
