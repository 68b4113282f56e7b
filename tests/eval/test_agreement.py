import itertools
import types

import jax
import numpy as np
import pytest

from molmoact2_jax.eval import agreement, golden, parity

CPU, GPU = types.SimpleNamespace(platform="cpu"), types.SimpleNamespace(platform="cuda")


@pytest.fixture
def computed(monkeypatch):
    """Stands in for what the devices compute."""

    def set_rows(**rows):
        monkeypatch.setattr(agreement, "_rows", lambda checkpoint, archive, device, cases: rows[device.platform])
        return agreement.compare("checkpoint", "archive", [GPU, CPU])

    return set_rows


def test_a_device_may_err_by_more_than_the_processor_but_not_by_any_amount(computed):
    for error, passed in ((5e-5, True), (2e-4, False)):
        (one,) = computed(cpu=[golden.Row("a", 5e-6, 1e-5)], cuda=[golden.Row("a", error, 1e-5)])
        assert one.passed == passed and one.errors == {"cuda": error, "cpu": 5e-6}
    (one,) = computed(cpu=[golden.Row("a", 5e-5, 1e-5)], cuda=[golden.Row("a", 0.0, 1e-5)])
    assert not one.passed


def test_equal_to_the_bit_stays_so_on_every_device_and_bfloat16_has_one_tolerance(computed):
    exact, coarse = computed(
        cpu=[golden.Row("ids", 0.0, 0.0), golden.Row("bfloat16/a", 0.01, agreement.COARSE)],
        cuda=[golden.Row("ids", 1.0, 0.0), golden.Row("bfloat16/a", 0.2, agreement.COARSE)],
    )
    assert not exact.passed and not coarse.passed and coarse.tolerances["cuda"] == agreement.COARSE


def test_what_one_device_could_not_compute_does_not_pass(computed):
    first, second = computed(
        cpu=[golden.Row("a", 0.0, 1e-5), golden.Row("b", 0.0, 1e-5)], cuda=[golden.Row("a", 0.0, 1e-5)]
    )
    assert first.passed and not second.passed and np.isinf(second.errors["cuda"])


def test_a_case_is_computed_on_the_device_asked_for(golden, monkeypatch):
    seen = set()
    rows = parity.case_rows

    def noted(oracle, index):
        seen.update(device for leaf in jax.tree.leaves(oracle.params) for device in leaf.devices())
        yield from itertools.islice(rows(oracle, index), 3)  # the others take seconds to compile

    monkeypatch.setattr(parity, "case_rows", noted)
    device = jax.devices()[3]
    found = agreement.compare(golden / "tiny", golden / "tiny" / "golden.npz", [device], cases=1)
    assert seen == {device}
    assert [row.name for row in found][-1] == "bfloat16/case0/trajectory"
    assert all(row.passed for row in found) and found[-1].errors["cpu"] > 1e-5
