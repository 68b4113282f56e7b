"""The websocket side of a server, over a real port: our client, and the bytes and the package of openpi's."""

import concurrent.futures
import json
import pathlib
import subprocess
import threading
import time
import venv

import numpy as np
import pytest
import websockets.exceptions
import websockets.sync.client

from molmoact2_jax.serve import client, metadata, server, service, wire_msgpack
from molmoact2_jax.serve import http as routes
from tests.serve import serving
from tests.serve.serving import STATE, ask, pictures

RECORDED = pathlib.Path(__file__).parent / "openpi_client.msgpack"


@pytest.fixture(scope="module")
def thinker(golden):
    return serving.load(golden / "tiny_think_random")


def connect(running, **options):
    return client.Client(running.url, **options)


def raw(running):
    """A connection without our client, past its first frame."""
    socket = websockets.sync.client.connect(f"ws://127.0.0.1:{running.port}/any/path", compression=None)
    socket.recv(timeout=20)
    return socket


def test_answers_equal_the_policys_to_the_bit(running, policy):
    with connect(running) as robot:
        for number, task in enumerate(["pick up the cup", "open", "put the small red bowl behind the drawer"]):
            answer = robot.act(pictures(number), task, STATE, seed=number)
            expected = policy.predict_action(pictures(number), task, STATE, "libero", seed=number)
            assert answer["actions"].dtype == np.float32
            np.testing.assert_array_equal(answer["actions"], expected.actions)
        by_name = robot.act(dict(zip(["wrist_image", "image"], pictures()[::-1], strict=True)), "open", STATE)
        np.testing.assert_array_equal(by_name["actions"], robot.act(pictures(), "open", STATE)["actions"])
        assert answer["server_timing"]["infer_ms"] > 0


def test_the_first_frame_is_the_metadata_that_http_gives(running):
    with connect(running) as robot:
        assert robot.metadata == json.loads(ask(running, "GET", "/metadata")[2])


def test_the_recorded_bytes_of_the_unmodified_openpi_client_are_answered(running, policy):
    request = RECORDED.read_bytes()
    sent = wire_msgpack.unpack(request)
    with raw(running) as socket:
        socket.send(request)
        answer = wire_msgpack.unpack(socket.recv(timeout=60))
    images = [sent["observation/image"], sent["observation/wrist_image"]]
    expected = policy.predict_action(images, sent["prompt"], sent["observation/state"], "libero")
    np.testing.assert_array_equal(answer["actions"], expected.actions)
    assert answer["ignored"] == ["step"]


@pytest.mark.slow
def test_the_unmodified_openpi_client_of_the_package_index_is_answered(running, policy, tmp_path):
    """In an environment of its own: it pins numpy below 2, and imports typing_extensions without asking for it."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "openpi-client", "typing_extensions"], check=True, cwd=tmp_path
    )
    np.savez(tmp_path / "observation.npz", image=pictures()[0], wrist=pictures()[1], state=STATE)
    program = (
        "import sys, numpy as np\n"
        "from openpi_client.websocket_client_policy import WebsocketClientPolicy\n"
        "given = np.load('observation.npz')\n"
        "policy = WebsocketClientPolicy('127.0.0.1', int(sys.argv[1]))\n"
        "assert policy.get_server_metadata()['norm_tag'] == 'libero'\n"
        "observation = {'observation/image': given['image'], 'observation/wrist_image': given['wrist'],\n"
        "               'observation/state': given['state'], 'prompt': 'pick up the cup'}\n"
        "first = policy.infer(observation)['actions']\n"
        "try:\n"
        "    policy.infer({**observation, 'observation/state': given['state'][:3]})\n"
        "except RuntimeError as error:\n"
        "    assert 'float32[3], expected float32[8]' in str(error), error\n"
        "np.save('actions.npy', np.stack([first, policy.infer(observation)['actions']]))\n"
    )
    subprocess.run([python, "-c", program, str(running.port)], check=True, cwd=tmp_path, timeout=120)
    expected = policy.predict_action(pictures(), "pick up the cup", STATE, "libero").actions
    for actions in np.load(tmp_path / "actions.npy"):
        np.testing.assert_array_equal(actions, expected)


def scene(robot, step):
    """Pictures of a robot whose first camera changes a little from step to step."""
    first, wrist = pictures(10 + robot)
    first = first.copy()
    first[: 8 * step, :20] = 40 * step
    return [first, wrist]


def test_depth_goes_on_inside_a_connection_and_never_into_another(thinker):
    with serving.served(thinker, depth="adaptive", warm=False) as running:
        wanted = []
        for robot in range(2):
            with thinker.episode("libero", "open", depth="adaptive") as episode:
                wanted.append([episode.act(scene(robot, step), STATE) for step in range(3)])
        with connect(running) as a, connect(running) as b:
            for step in range(3):
                for robot, one in enumerate((a, b)):
                    answer = one.act(scene(robot, step), "open", STATE)
                    expected = wanted[robot][step]
                    np.testing.assert_array_equal(answer["depth_buffer_codes"], expected.depth_codes)
                    np.testing.assert_array_equal(answer["actions"], expected.actions)
                    assert answer["depth_changed"] == expected.changed
                    assert (answer["depth_changed"] == 100) == (step == 0)
            a.reset()
            assert a.act(scene(0, 2), "open", STATE)["depth_changed"] == 100
            assert b.act(scene(1, 2), "open", STATE)["depth_changed"] == 0
        with connect(running) as again:
            assert again.act(scene(1, 2), "open", STATE)["depth_changed"] == 100


def test_clients_at_once_each_get_their_own_actions(running, policy):
    def act_twice(number):
        with connect(running) as robot:
            return [robot.act(pictures(number), "open", STATE)["actions"] for _ in range(2)]

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(act_twice, range(6)))
    for number, actions in enumerate(answers):
        expected = policy.predict_action(pictures(number), "open", STATE, "libero").actions
        np.testing.assert_array_equal(actions, [expected, expected])


def good(number=0):
    first, wrist = pictures(number)
    return {"observation/image": first, "observation/wrist_image": wrist, "observation/state": STATE, "prompt": "open"}


@pytest.mark.parametrize(
    ("message", "kind", "field"),
    [
        ("text", "malformed", "message"),
        (b"", "malformed", "message"),
        (wire_msgpack.pack(good())[:-9], "malformed", "message"),
        (RECORDED.read_bytes().replace(b"|u1", b"|O8"), "malformed", "array"),
        (wire_msgpack.pack([1, 2]), "bad_request", "body"),
        (wire_msgpack.pack(good() | {"observation/state": STATE * np.nan}), "bad_request", "state"),
        (wire_msgpack.pack(good() | {"observation/state": STATE.astype("<i8")[:2]}), "bad_request", "state"),
        (wire_msgpack.pack(good() | {"observation/image": None}), "bad_request", "images[0] (observation/image)"),
        (wire_msgpack.pack({k: v for k, v in good().items() if k != "prompt"}), "bad_request", "instruction"),
        (wire_msgpack.pack({"images": pictures()[:1], "prompt": "a", "state": STATE}), "bad_request", "images"),
    ],
)
def test_a_bad_message_is_one_typed_line_and_the_connection_goes_on(running, message, kind, field):
    with raw(running) as socket:
        socket.send(message)
        answer = socket.recv(timeout=20)
        assert isinstance(answer, str) and "\n" not in answer
        told = json.loads(answer)
        assert (told["type"], told["field"]) == (kind, field)
        socket.send(wire_msgpack.pack(good()))
        assert wire_msgpack.unpack(socket.recv(timeout=60))["actions"].shape == (10, 7)


def test_whatever_is_sent_is_answered_and_the_connection_goes_on(running):
    whole, rng = wire_msgpack.pack(good()), np.random.default_rng(0)
    with raw(running) as socket:
        for _ in range(300):
            damaged = bytearray(whole)
            for place in rng.integers(0, len(whole), rng.integers(1, 4)).tolist() + rng.integers(0, 60, 1).tolist():
                damaged[place] = rng.integers(256)
            socket.send(bytes(damaged))
            answer = socket.recv(timeout=20)
            if isinstance(answer, str):
                told = json.loads(answer)
                assert told["type"] in ("malformed", "bad_request", "out_of_range") and "\n" not in told["error"]
            else:
                assert wire_msgpack.unpack(answer)["actions"].shape == (10, 7)
        socket.send(whole)
        assert wire_msgpack.unpack(socket.recv(timeout=20))["actions"].shape == (10, 7)


def test_a_message_larger_than_the_server_reads_ends_its_connection_alone(running):
    with raw(running) as socket:
        socket.send(bytes((1 << 20) + 1))
        with pytest.raises(websockets.exceptions.ConnectionClosed):
            socket.recv(timeout=20)
    with connect(running) as robot:
        assert robot.act(pictures(), "open", STATE)["actions"].shape == (10, 7)


def test_a_robot_that_leaves_while_it_is_answered_disturbs_nobody(running, policy, monkeypatch, caplog):
    slow = Slow(policy, monkeypatch)
    gone = raw(running)
    gone.send(wire_msgpack.pack(good()))
    assert slow.begun.wait(20)
    gone.socket.close()
    slow.go_on.set()
    with connect(running) as robot:
        assert robot.act(pictures(), "open", STATE)["actions"].shape == (10, 7)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_web_pages_are_refused(running):
    with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
        websockets.sync.client.connect(f"ws://127.0.0.1:{running.port}", origin="http://evil.example")
    assert refused.value.response.status_code == 401


def test_an_error_of_the_server_reaches_the_caller_typed(running):
    with connect(running) as robot:
        with pytest.raises(client.ServerError, match=r"state: float32\[3\], expected float32\[8\]") as refused:
            robot.act(pictures(), "open", STATE[:3])
        assert (refused.value.type, refused.value.field) == ("bad_request", "state")
        assert robot.act(pictures(), "open", STATE)["actions"].shape == (10, 7)


def test_a_client_without_the_token_or_without_a_server_is_told_so(policy):
    with serving.served(policy, token="s3cret") as private:
        for token in (None, "wrong"):
            with pytest.raises(ConnectionError, match="authorization: missing or wrong"):
                connect(private, token=token)
        headers = {"Authorization": "Api-Key s3cret"}  # as openpi's client writes it
        with websockets.sync.client.connect(f"ws://127.0.0.1:{private.port}", additional_headers=headers) as socket:
            assert wire_msgpack.unpack(socket.recv(timeout=20))["norm_tag"] == "libero"
        with connect(private, token="s3cret") as robot:
            assert robot.act(pictures(), "open", STATE)["actions"].shape == (10, 7)
        url = private.url
    with pytest.raises(ConnectionError, match="expected a policy server"):
        client.Client(url)
    with pytest.raises(ValueError, match="url: 'ftp://robot'"):
        client.Client("ftp://robot")


def test_a_client_that_comes_early_gets_its_first_frame_when_the_server_is_ready(policy):
    early = server.Server(routes.State(), port=0)
    made = service.Service(policy, service.Settings("libero", ("image", "wrist_image"), max_task_tokens=24))
    try:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            waiting = pool.submit(connect, early)
            time.sleep(0.3)
            assert not waiting.done() and ask(early, "GET", "/healthz")[0] == 503
            early.state.open(made, metadata.of(made, "tiny", "0"))
            with waiting.result(20) as robot:
                assert robot.metadata["checkpoint"] == {"name": "tiny", "digest": "0", "dtype": "float32"}
    finally:
        assert early.stop()


class Slow:
    """Holds up every call of a policy until told to go on."""

    def __init__(self, policy, monkeypatch):
        self.begun, self.go_on, whole = threading.Event(), threading.Event(), policy.predict_actions

        def slow(*args, **options):
            self.begun.set()
            assert self.go_on.wait(20)
            return whole(*args, **options)

        monkeypatch.setattr(policy, "predict_actions", slow)


def test_a_reset_from_another_thread_waits_for_the_answer_before(running, policy, monkeypatch):
    slow = Slow(policy, monkeypatch)
    with concurrent.futures.ThreadPoolExecutor() as pool, connect(running) as robot:
        answer = pool.submit(robot.act, pictures(), "open", STATE)
        assert slow.begun.wait(20)
        ended = pool.submit(robot.reset)
        assert not concurrent.futures.wait([ended], timeout=0.1).done
        slow.go_on.set()
        assert answer.result(20)["actions"].shape == (10, 7)
        ended.result(20)


def test_a_busy_model_blocks_nobody_who_asks_for_something_else(running, policy, monkeypatch):
    slow = Slow(policy, monkeypatch)
    with concurrent.futures.ThreadPoolExecutor() as pool, connect(running) as robot:
        first = pool.submit(robot.act, pictures(), "open", STATE)
        assert slow.begun.wait(20)
        assert ask(running, "GET", "/healthz")[0] == 200
        with connect(running) as second, pytest.raises(client.ServerError, match="state: None"):
            second.act(pictures(), "open", None)
        assert not first.done()
        slow.go_on.set()
        assert first.result(20)["actions"].shape == (10, 7)


def test_a_server_that_ends_finishes_what_it_has_begun(policy, monkeypatch):
    slow = Slow(policy, monkeypatch)
    with concurrent.futures.ThreadPoolExecutor() as pool, serving.served(policy) as running:
        robot, late = connect(running), connect(running)
        first = pool.submit(robot.act, pictures(), "open", STATE)
        assert slow.begun.wait(20)
        stopped = pool.submit(running.stop)
        while not running.state.ending:
            time.sleep(0.01)
        with pytest.raises(client.ServerError, match="is ending"):
            late.act(pictures(), "open", STATE)
        slow.go_on.set()
        assert first.result(20)["actions"].shape == (10, 7)
        assert stopped.result(20)
        with pytest.raises(ConnectionError):
            robot.act(pictures(), "open", STATE)


def test_the_digest_tells_weights_apart_and_not_how_they_are_arranged(golden, policy, thinker):
    from molmoact2_jax import Policy

    unrolled = Policy.from_pretrained(golden / "tiny", dtype="float32", unroll=True)
    same, other = (metadata.fingerprint(p.cfg, p.params) for p in (policy, thinker))
    assert metadata.fingerprint(unrolled.cfg, unrolled.params) == same != other
