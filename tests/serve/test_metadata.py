import dataclasses
import json

import pytest

from molmoact2_jax import Policy
from molmoact2_jax.serve import guard, metadata, service


def told(policy, served=("image", "wrist_image"), **facts):
    """The metadata of a server of the tag `libero` with other facts."""
    host = policy.host
    tags = {**host.stats.tags, "libero": dataclasses.replace(host.stats.tags["libero"], **facts)}
    other = Policy(
        dataclasses.replace(host, stats=dataclasses.replace(host.stats, tags=tags)), policy.params, unroll=False
    )
    made = service.Service(other, service.Settings("libero", served, checks=guard.Options("warn")))
    assert made.close(10)
    found = metadata.of(made, "tiny", "0" * 64)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_the_rate_is_that_of_the_demonstrations_or_a_chunk_per_second(policy):
    assert (told(policy)["rate_hz"], told(policy)["rate_source"]) == (10, "a chunk is about one second")
    found = told(policy, provenance={"datasets": [{"fps": 15.0}, {"fps": 15.0}]})
    assert (found["rate_hz"], found["rate_source"]) == (15, "norm_stats")
    assert told(policy, provenance={"datasets": [{"fps": 15.0}, {"fps": 30.0}]})["rate_hz"] == 10
    assert told(policy, provenance={"datasets": [{"name": "old"}]})["rate_hz"] == 10


def test_a_franka_with_joint_control_has_the_fields_of_roboarena_and_no_other_robot_has(policy):
    fields = {
        "setup": "single franka robotic arm in droid",
        "control": "absolute joint pose",
        "cameras": ("exterior_1_left", "exterior_2_left", "wrist_left"),
    }
    found = told(policy, ("exterior_1_left", "wrist_left"), **fields)
    assert {key: found[key] for key in ("needs_wrist_camera", "n_external_cameras", "action_space")} == {
        "needs_wrist_camera": True,
        "n_external_cameras": 1,
        "action_space": "joint_position",
    }
    assert found["image_resolution"] is None and not found["needs_session_id"] and not found["needs_stereo_camera"]
    assert "action_space" not in told(policy)


def test_limits_are_told_with_their_source(policy):
    action = policy.host.tag("libero").action
    found = told(policy, action=dataclasses.replace(action, max_step=(0.25,) * 7))
    assert found["action"]["step"] == [0.25] * 6 + [None]
    assert found["guard"] == {"actions": "warn", "states": "warn", "margin": 0.5, "step_source": "max_step"}
    assert told(policy)["guard"]["step_source"] == "range"
    assert found["norm_tag_digest"] != told(policy)["norm_tag_digest"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (dict(cameras=()), "cameras: 0, expected 1 to 5"),
        (dict(cameras=("image", "wrist_image", "top")), "cameras: .*expected some of .*in this order"),
        (dict(cameras=("wrist_image", "image")), "cameras: .*expected some of .*in this order"),
        (dict(cameras=("front",)), "cameras: .*expected some of .*in this order"),
        (dict(norm_tag="droid"), "norm_tag: 'droid'"),
        (dict(timeout_s=0.0), "expected more than 0"),
        (dict(max_task_tokens=0), "expected more than 0"),
        (dict(most_together=6), "most_together: 6, expected 1, 2, 4, 8"),
        (dict(num_steps=0), "num_steps: 0"),
        (dict(mode="both"), "mode: 'both'"),
    ],
)
def test_settings_that_cannot_be_served_are_refused(policy, changed, message):
    with pytest.raises(ValueError, match=message):
        service.Service(
            policy, service.Settings(**({"norm_tag": "libero", "cameras": ("image", "wrist_image")} | changed))
        )
