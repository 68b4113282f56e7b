"""Every recorded array of the released implementation. Layers run as compiled loops here, which compile faster."""

import jax
import numpy as np
import pytest

from molmoact2_jax.eval import golden as archives
from molmoact2_jax.eval import parity, parity_host
from molmoact2_jax.serve import observe
from molmoact2_jax.text.actions import ActionDecodeError

ARCHIVES = ("tiny", "tiny_think", "tiny_think_random")


def oracle(directory, name, **options):
    return archives.Oracle(directory / name, directory / name / "golden.npz", **options)


def passed(rows):
    rows = list(rows)
    missed = [row for row in rows if not row.passed]
    assert not missed
    assert rows
    return {row.name for row in rows}


@pytest.fixture(scope="module")
def tiny(golden):
    return oracle(golden, "tiny", unroll=False)


def test_every_array_of_a_plain_model_is_reproduced(tiny):
    done = passed(parity.inference_rows(tiny))
    assert [name for name in parity.unchecked(tiny, done) if not name.startswith("train/")] == []


def test_adaptive_depth_of_random_codes_is_reproduced(golden):
    done = passed(parity.case_rows(oracle(golden, "tiny_think_random", unroll=False, widths=(102,)), 2))
    assert {"case2/frame2/tokens", "case2/foreign_cache/depth_bins"} <= done


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHIVES)
def test_every_array_is_reproduced_as_a_policy_computes_it(golden, name):
    one = oracle(golden, name)
    done = passed(parity.inference_rows(one))
    assert [name for name in parity.unchecked(one, done) if not name.startswith("train/")] == []


@pytest.mark.parametrize("name", ARCHIVES)
def test_what_needs_no_model_is_reproduced(golden, name):
    passed(parity_host.rows(oracle(golden, name)))


def test_training_arrays_that_nothing_compared_are_listed(tiny):
    listed = parity.unchecked(tiny, set())
    assert "train/ki/lm_loss" in listed
    assert "train/input_ids" not in listed
    assert "case0/noise" not in listed
    assert "case0/trajectory" in listed


def test_differences_are_relative_to_the_largest_recorded_value():
    recorded = np.array([0.0, 4.0], np.float32)
    row = archives.compare("x", recorded + np.float32(2e-5), recorded)
    assert row.error == pytest.approx(5e-6, rel=0.1)
    assert row.passed
    assert not archives.compare("x", recorded + np.float32(1e-3), recorded).passed


def test_integers_must_be_equal_and_shapes_must_agree_but_for_leading_ones():
    recorded = np.array([[1, 2, 3]])
    assert archives.compare("x", np.array([1, 2, 3]), recorded).passed
    assert archives.compare("x", np.array([1, 2, 4]), recorded).error == 1
    assert "recorded (1, 3)" in archives.compare("x", np.array([1, 2]), recorded).note
    assert not archives.compare("x", np.array([1, 2]), recorded).passed


@pytest.mark.parametrize("tolerance", [0, 1e-5])
def test_what_is_not_a_number_never_passes(tolerance):
    recorded = np.array([1.0, 2.0], np.float32)
    assert not archives.compare("x", np.array([1.0, np.nan], np.float32), recorded, tolerance).passed


def test_tokens_that_cannot_be_decoded_are_a_row_that_fails(tiny, monkeypatch):
    def fail(*_, **__):
        raise ActionDecodeError("no end")

    monkeypatch.setattr(tiny.policy, "predict_actions", fail)
    rows = list(parity._guarded("case0/tokens_discrete", parity._discrete(tiny, 0)))
    assert [(row.name, row.passed, row.note) for row in rows] == [("case0/tokens_discrete", False, "no end")]


def test_a_wrong_weight_is_noticed_in_every_stage_behind_it(tiny):
    head = tiny.params["llm"]["head"]
    worse = {**tiny.params, "llm": {**tiny.params["llm"], "head": {**head, "norm": head["norm"] * 1.01}}}
    row = parity._prompt(tiny, 2)
    inputs = observe.pad([row], tiny.cfg.tokens.pad, len(row.tokens))
    stages = jax.jit(parity.prefill_stages, static_argnums=0)(tiny.cfg, worse, inputs)
    assert not tiny.check("case2/last_logits", stages["last_logits"]).passed
    assert tiny.check("case2/k_last_layer", stages["k_last_layer"]).passed


def test_an_archive_without_its_description_or_of_another_kind_is_refused(golden, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"golden\.npz: no such file"):
        archives.Oracle(golden / "tiny", tmp_path / "golden.npz")
    (tmp_path / "golden.npz").write_bytes(b"nothing")
    (tmp_path / "golden.json").write_text("{}")
    with pytest.raises(ValueError, match=r"golden\.npz: .*expected recorded arrays"):
        archives.Oracle(golden / "tiny", tmp_path / "golden.npz")
