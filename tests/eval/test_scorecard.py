import jax
import jax.numpy as jnp
import pytest

from molmoact2_jax.checkpoint import config_json, runs
from molmoact2_jax.eval import scorecard


@pytest.fixture(scope="module")
def policies(golden, tmp_path_factory):
    """Untrained policies of the tiny model: of the released format, and of a run that has not saved weights yet."""
    run = tmp_path_factory.mktemp("run") / "run"
    runs.describe(run, {}, config_json.load(golden / "tiny"), golden / "tiny")
    wanted = dict(released=(golden / "tiny", "float32", 0), run=(run, "bfloat16", 0), other=(run, "float32", 1))
    return {name: scorecard.untrained(*arguments) for name, arguments in wanted.items()}


def test_an_untrained_policy_depends_on_seed_and_not_on_the_directory(policies):
    released, run, other = (jax.tree.leaves(policy.params) for policy in policies.values())
    assert all((a.astype(jnp.bfloat16) == b).all() for a, b in zip(released, run, strict=True))
    assert any((a != b).any() for a, b in zip(released, other, strict=True))
    assert {leaf.dtype for leaf in run} == {jnp.dtype("bfloat16")}


def test_a_fingerprint_depends_on_weights_and_robot(policies):
    one = policies["released"]
    prints = [scorecard.digest(policy, "libero") for policy in policies.values()]
    assert len({*prints, scorecard.digest(one, "yam")}) == 4
    before = one.params
    one.replace(jax.tree.map(lambda leaf: leaf + 0, before))
    assert scorecard.digest(one, "libero") == prints[0]
    one.replace(jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].add(1e-3), before))
    assert scorecard.digest(one, "libero") != prints[0]
