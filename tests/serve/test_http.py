"""The HTTP side of a server, over a real port."""

import base64
import concurrent.futures
import http.client
import json
import socket
import threading

import numpy as np
import pytest

from molmoact2_jax.serve import http as routes
from molmoact2_jax.serve import server, service, wire_json
from molmoact2_jax.text import prompt
from molmoact2_jax.text.actions import ActionDecodeError
from tests.serve import serving
from tests.serve.serving import STATE, ask, pictures, post


def body(number=0, task="pick up the cup", **changed):
    image, wrist = pictures(number)
    return {"image": image, "wrist_image": wrist, "instruction": task, "state": STATE, **changed}


def act(running, message, headers=None):
    status, head, text = ask(running, "POST", "/act", wire_json.dumps(message), headers)
    assert head["content-type"] == "application/json"
    return status, wire_json.loads(text)


def expected(policy, number=0, task="pick up the cup", **options):
    return policy.predict_action(pictures(number), task, STATE, "libero", **options).actions


def works(running, policy):
    status, answer = act(running, body())
    assert status == 200
    np.testing.assert_array_equal(answer["actions"], expected(policy))


def test_answers_equal_the_policys_to_the_bit(running, policy):
    for seed, task in enumerate(["pick up the cup", "open", "put the small red bowl behind the drawer"]):
        status, answer = act(running, body(seed, task))
        assert status == 200
        assert answer["actions"].dtype == np.float32
        np.testing.assert_array_equal(answer["actions"], expected(policy, seed, task))
    status, answer = act(running, body(5, n_action_steps=3, seed=4))
    np.testing.assert_array_equal(answer["actions"], expected(policy, 5, seed=4)[:3])


def test_an_answer_says_what_was_measured_and_counted(running):
    _, answer = act(running, body(misspelt=1))
    assert answer["action_shape"] == [10, 7] and answer["style"] == "robot_action" and answer["inference_calls"] == 1
    assert answer["dt_ms"] == answer["latency_ms"] > 0
    assert set(answer["guard"]) == {"out_of_range", "jumps", "changed", "state"}
    assert answer["ignored"] == ["misspelt"]


def test_a_client_that_sends_lists_gets_lists(running, policy):
    message = {
        "images": [picture.tolist() for picture in pictures()], "task": "pick up the cup", "state": STATE.tolist()
    }  # fmt: skip
    status, answer = post(running, message)
    assert status == 200
    np.testing.assert_array_equal(np.asarray(answer["actions"], np.float32), expected(policy))


def test_two_clients_at_once_each_get_their_own_actions(running, policy):
    wanted = [expected(policy, seed) for seed in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda seed: act(running, body(seed, session_id=f"robot {seed % 2}")), range(8)))
    for (status, answer), actions in zip(answers, wanted, strict=True):
        assert status == 200
        np.testing.assert_array_equal(answer["actions"], actions)


def test_single_actions_come_from_the_sessions_queue_until_it_is_empty_or_reset(running, policy):
    chunk = expected(policy, 1)
    message = body(1, single_action="yes", session_id="one")
    answers = [act(running, message)[1] for _ in range(3)]
    np.testing.assert_array_equal([answer["action"] for answer in answers], chunk[:3])
    assert [answer["inference_calls"] for answer in answers] == [1, 0, 0]
    assert act(running, body(2, single_action="yes", session_id="two"))[1]["inference_calls"] == 1
    assert post(running, {"session_id": "on", "prefix": True}, "/reset") == (200, {"status": "ok", "ended": 1})
    assert act(running, message)[1]["inference_calls"] == 1
    assert post(running, {"session_id": "nobody"}, "/reset") == (200, {"status": "ok", "ended": 0})


NAN = np.where(np.arange(8) == 2, np.nan, STATE).astype(np.float32)


@pytest.mark.parametrize(
    ("message", "field", "said"),
    [
        (body(state=NAN), "state", "not finite in channels ['2 (j2)']"),
        (body(state=STATE[:7]), "state", "float32[7], expected float32[8]"),
        (body(state=None), "state", "None, expected 8 numbers"),
        (body(state="x"), "state", "str, expected numbers"),
        ({"images": pictures(count=1), "task": "pick", "state": STATE}, "images", "1, expected 2 (image, wrist_image)"),
        ({"images": pictures(count=3), "task": "pick", "state": STATE}, "images", "3, expected 2 (image, wrist_image)"),
        ({"task": "pick", "state": STATE}, "images", "missing, expected 2 (image, wrist_image)"),
        (body(image=pictures()[0].astype(np.float32) - 9), "images[0]", "expected 0..255"),
        (body(image=np.zeros((0, 4, 3), np.uint8)), "images[0]", "at least one pixel"),
        (body(instruction=None), "instruction", "missing"),
        (body(task="very " * 30), "task", "tokens, expected at most 24"),
        (body(task="x" * 50_000), "task", "expected at most 24"),
        (body(norm_tag="yam"), "norm_tag", "'yam', expected 'libero'"),
        (body(num_steps=4), "num_steps", "4, expected 10"),
        (body(n_action_steps=11), "n_action_steps", "11, expected 1 to 10"),
        (body(seed=-1), "seed", "-1, expected 0 or more"),
        ([], "body", "list, expected fields by name"),
    ],
)
def test_a_bad_field_is_one_typed_line_that_names_it_and_the_server_goes_on(running, policy, message, field, said):
    status, answer = act(running, message)
    assert status == 400
    assert answer["field"] == field
    assert answer["type"] in ("bad_request", "out_of_range")
    assert said in answer["error"] and "\n" not in answer["error"] and "Traceback" not in answer["error"]
    works(running, policy)


@pytest.mark.parametrize(
    ("text", "kind", "status"),
    [
        ("", "malformed", 400),
        ('{"image": ', "malformed", 400),
        ("[" * 100_000, "malformed", 400),
        (json.dumps({"image": {"__numpy__": "AAAA", "dtype": "|O", "shape": [1]}}), "malformed", 400),
        (json.dumps({"image": {"__numpy__": "AAAA", "dtype": "|u1", "shape": [10**15]}}), "malformed", 400),
        (base64.b64encode(bytes(1 << 20)).decode(), "too_large", 413),
    ],
)
def test_a_malformed_or_huge_body_is_refused_and_the_server_goes_on(running, policy, text, kind, status):
    got, _, answer = ask(running, "POST", "/act", text)
    assert (got, json.loads(answer)["type"]) == (status, kind)
    works(running, policy)


def test_a_body_that_never_arrives_times_out(running, policy, monkeypatch):
    monkeypatch.setattr(routes, "BODY_TIMEOUT", 0.2)
    status, _, answer = ask(running, "POST", "/act", "{", {"content-length": "100"})
    assert (status, json.loads(answer)["type"]) == (504, "timeout")
    works(running, policy)


def test_the_server_describes_itself(running, policy):
    status, _, text = ask(running, "GET", "/metadata")
    told = json.loads(text)
    assert status == 200
    assert told["cameras"] == ["image", "wrist_image"]
    assert told["state"]["names"] == [f"j{i}" for i in range(8)]
    assert told["action"]["names"] == [f"j{i}" for i in range(7)]
    assert told["action"]["gripper"] == [False] * 6 + [True]
    assert told["action"]["step"][6] is None
    action = policy.host.tag("libero").action
    assert told["action"]["low"][0] == action.min[0] and told["action"]["high"][0] == action.max[0]
    assert told["checkpoint"]["dtype"] == "float32" and len(told["checkpoint"]["digest"]) == 64
    assert (told["horizon"], told["n_action_steps"], told["rate_hz"]) == (10, 10, 10)
    about = json.loads(ask(running, "GET", "/act")[2])
    assert about["status"] == "ok" and about["norm_tag"] == "libero" and about["state_dim"] == 8
    assert ask(running, "GET", "/healthz")[0] == 200


def test_health_counts_calls_and_broken_limits(running):
    before = json.loads(ask(running, "GET", "/health")[2])
    act(running, body(state=STATE + np.float32(500)))
    after = json.loads(ask(running, "GET", "/health")[2])
    assert after["calls"] == before["calls"] + 1
    state = after["guard"]["state"]
    assert state["j0"] == before["guard"]["state"].get("j0", 0) + 1
    assert "j3" not in state  # it never moved in the demonstrations
    assert after["latency_ms"]["p50"] > 0


def test_no_instruction_compiles_anything_after_warming(running, policy):
    before, lengths, rng = policy.compilations, set(), np.random.default_rng(0)
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789 ,;.'-ÄŠé猫")
    for _ in range(60):
        task = "".join(rng.choice(letters, rng.integers(0, 40)))
        length = len(policy.host.tokenizer.encode(prompt.normalize_task(task)))
        lengths.add(length)
        assert act(running, body(task=task))[0] == (200 if length <= 24 else 400)
    assert min(lengths) < 6 and {23, 24, 25} & lengths
    assert policy.compilations == before
    assert json.loads(ask(running, "GET", "/health")[2])["late_compilations"] == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("checkpoint", "options"),
    [
        ("tiny", {"mode": "discrete"}),
        ("tiny_think", {"depth": "full"}),
        ("tiny_think", {"depth": "adaptive"}),
        ("tiny_think_random", {"depth": "adaptive"}),
    ],
)
def test_no_call_of_any_kind_compiles_anything_after_warming(golden, checkpoint, options):
    other, statuses = serving.load(golden / checkpoint), []
    with serving.served(other, max_task_tokens=4, **options) as made:
        before = other.compilations
        for number, task in enumerate(["a", "open", "b c", "d e f g"] * 2):
            statuses.append(act(made, body(number, task, action_chunk=True, session_id="one"))[0])
        assert other.compilations == before
    assert set(statuses) <= {200, 500}  # 500: tokens that are no actions, of a model that knows six prompts


def test_answers_leave_at_once(running, monkeypatch):
    """Held back until the client has acknowledged their headers they would take 40 ms each."""
    said, real = [], socket.socket.setsockopt

    def spy(self, *words):
        said.append((self.getsockname()[1], *words))
        return real(self, *words)

    monkeypatch.setattr(socket.socket, "setsockopt", spy)
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    connection.request("GET", "/metadata")
    assert connection.getresponse().read()
    connection.close()
    assert (running.port, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1) in said


def test_unknown_paths_and_methods_are_refused(running):
    assert ask(running, "GET", "/nothing")[0] == 404
    assert ask(running, "POST", "/metadata")[0] == 405


def test_web_pages_are_refused(running):
    status, answer = act(running, body(), {"origin": "http://evil.example"})
    assert (status, answer["field"]) == (401, "origin")


def test_before_ready_everything_is_503_and_says_why():
    early = server.Server(routes.State(), port=0)
    early.state.loading = "compiles"
    try:
        for method, path in [
            ("POST", "/act"), ("GET", "/act"), ("POST", "/reset"), ("GET", "/metadata"), ("GET", "/health"),
            ("GET", "/healthz"),
        ]:  # fmt: skip
            status, head, text = ask(early, method, path, "{}" if method == "POST" else None)
            assert (status, head["retry-after"]) == (503, "1")
            assert json.loads(text) == {
                "error": "server: compiles, expected READY. Try again later.", "type": "not_ready", "field": "server"
            }  # fmt: skip
    finally:
        assert early.stop()


def test_a_port_that_is_taken_is_refused_in_words(running):
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{running.port}"):
        server.Server(routes.State(), port=running.port)


def test_a_token_is_asked_for_everywhere_but_for_health(policy):
    with serving.served(policy, token="s3cret") as private:
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "s3cret"}):
            status, answer = act(private, body(), headers)
            assert (status, answer["type"], answer["field"]) == (401, "unauthorized", "authorization")
            assert ask(private, "GET", "/metadata", None, headers)[0] == 401
        for scheme in ("Bearer", "Api-Key"):
            assert act(private, body(), {"authorization": f"{scheme} s3cret"})[0] == 200
        assert ask(private, "GET", "/healthz")[0] == 200


def test_what_breaks_inside_is_one_line_for_the_robot_and_a_traceback_for_the_log(running, policy, monkeypatch, caplog):
    def broken(*args, **options):
        raise ZeroDivisionError("secret path /home/me")

    monkeypatch.setattr(policy, "predict_actions", broken)
    status, answer = act(running, body())
    assert status == 500
    assert answer["type"] == "internal" and "secret" not in answer["error"]
    assert any(record.exc_info for record in caplog.records)
    monkeypatch.undo()
    works(running, policy)


def test_actions_that_are_not_finite_are_an_error_and_never_sent(running, policy, monkeypatch):
    whole = policy.predict_actions

    def damaged(*args, **options):
        outs = whole(*args, **options)
        outs[0].actions[1, 2] = np.nan
        return outs

    monkeypatch.setattr(policy, "predict_actions", damaged)
    status, answer = act(running, body())
    assert status == 500
    assert (answer["type"], answer["field"]) == ("inference", "actions")
    assert "not finite in channels ['j2']" in answer["error"] and "actions" not in answer


def test_a_model_that_makes_nothing_of_black_pictures_is_timed_all_the_same(policy, monkeypatch):
    def refuses(*args, **options):
        raise ActionDecodeError("answer: no chunk")

    monkeypatch.setattr(policy, "predict_actions", refuses)
    made = service.Service(policy, service.Settings("libero", ("image", "wrist_image")))
    taken, failed = made.rehearse(5, 60)
    assert len(taken) == failed == 5
    assert len(made.rehearse(5, 0)[0]) == 3

    def breaks(*args, **options):
        raise MemoryError("no room")

    monkeypatch.setattr(policy, "predict_actions", breaks)
    with pytest.raises(MemoryError, match="no room"):
        made.rehearse(5, 60)
    assert made.close(10)


def test_a_call_that_takes_too_long_is_given_up_and_the_server_goes_on(policy, monkeypatch):
    go_on, whole = threading.Event(), policy.predict_actions
    with serving.served(policy, timeout_s=3) as impatient:
        monkeypatch.setattr(policy, "predict_actions", lambda *a, **o: go_on.wait(60) and whole(*a, **o))
        status, answer = act(impatient, body())
        assert (status, answer["type"]) == (504, "timeout")
        monkeypatch.undo()
        go_on.set()
        works(impatient, policy)


def test_calls_that_wait_together_run_together_and_each_gets_its_own(policy, monkeypatch):
    sizes, whole = [], policy.predict_actions

    def counted(observations, **options):
        sizes.append(len(observations))
        return whole(observations, **options)

    with serving.served(policy, most_together=4, max_task_tokens=4) as together:
        before = policy.compilations
        monkeypatch.setattr(policy, "predict_actions", counted)
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda seed: act(together, body(seed, "open")), range(8)))
        monkeypatch.undo()
        assert policy.compilations == before
    assert max(sizes) > 1 and set(sizes) <= {1, 2, 4}
    for seed, (status, answer) in enumerate(answers):
        assert status == 200
        wanted = expected(policy, seed, "open")
        np.testing.assert_allclose(answer["actions"], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
