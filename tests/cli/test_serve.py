"""`serve` as a process of its own, and `probe` against it."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from PIL import Image

from molmoact2_jax.cli import main

# any name that has to be looked up, and any address but this machine's, is out of reach
OFFLINE = """
import socket, sys
def refuse(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
        raise OSError(f"offline: {address}")
    return connect(self, address)
connect, socket.socket.connect = socket.socket.connect, refuse
from molmoact2_jax.cli import main
sys.exit(main.main(sys.argv[1:]))
"""
SERVE = ["--norm-tag", "libero", "--dtype", "float32", "--port", "0", "--max-task-tokens", "8"]


class Process:
    """A server's process and the lines it has printed."""

    def __init__(self, checkpoint, *words):
        command = [sys.executable, "-c", OFFLINE, "serve", str(checkpoint), *SERVE, *words]
        pipe, merged = subprocess.PIPE, subprocess.STDOUT
        self.process = subprocess.Popen(command, stdout=pipe, stderr=merged, text=True, env=dict(os.environ))
        self.lines = []

    def until(self, word):
        """Reads lines until one that starts with a word, and returns that."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            if line.startswith(word):
                return line
        raise AssertionError(f"no {word}: {self.lines}")

    def end(self, number=signal.SIGTERM):
        """Sends a signal and returns the exit status."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=60)
        self.lines += rest.splitlines()
        return self.process.returncode


@contextlib.contextmanager
def process(*words):
    made = Process(*words)
    try:
        yield made
    finally:
        made.process.kill()
        made.process.communicate()


@pytest.fixture(scope="module")
def server(golden):
    with process(golden / "tiny") as made:
        made.until("READY")
        yield made


@pytest.fixture(scope="module")
def url(server):
    return re.search(r"http://\S+:\d+", server.lines[0])[0]


def test_start_says_what_is_served_how_long_it_took_and_when_it_is_ready(server):
    text = "\n".join(server.lines)
    assert re.search(r"^listening  http://127\.0\.0\.1:\d+, 503 until READY$", text, re.M)
    assert re.search(r"^loaded     tiny as float32 on cpu in \d+\.\d s$", text, re.M)
    assert re.search(r"^compiled   \d+ programs in \d+\.\d s, for instructions of up to 8 tokens$", text, re.M)
    assert "robot      libero: cameras image, wrist_image; 8 states; 10 of 10 steps of 7 actions at 10 Hz" in text
    assert re.search(r"^READY      http://127\.0\.0\.1:\d+  p50 \d+\.\d ms, p95 \d+\.\d ms over \d+ calls$", text, re.M)


def probe(capsys, *words):
    status = main.main(["probe", *words])
    out, error = capsys.readouterr()
    return status, out, error


def test_probe_reports_ranges_cameras_latency_and_what_would_be_clamped(url, capsys):
    status, out, error = probe(capsys, url, "--calls", "3")
    assert (status, error) == (0, "")
    assert "cameras    image, wrist_image" in out
    assert re.search(r"^  j3 +any +any$", out, re.M)
    assert re.search(r"^latency    p50 .* p95 .* p99 .* 3 calls$", out, re.M)
    assert "chunk      10 actions at 10 Hz last 1000 ms" in out
    assert "guard      out of range: none; jumps: none; clamped: none; states out of range: none" in out


def test_probe_as_json(url, capsys, golden, tmp_path):
    arrays = np.load(golden / "tiny" / "golden.npz")
    words = []
    for name in ("image0", "image1"):
        Image.fromarray(arrays[f"case0/{name}"]).save(tmp_path / f"{name}.png")
        words += ["--image", str(tmp_path / f"{name}.png")]
    np.save(tmp_path / "state.npy", arrays["case0/state"])
    status, out, _ = probe(
        capsys, url, *words, "--state", str(tmp_path / "state.npy"), "--task", "open", "--calls", "2", "--json"
    )
    found = json.loads(out)
    assert status == 0 and found["problems"] == []
    assert found["metadata"]["norm_tag"] == "libero" and found["chunk_ms"] == 1000
    assert found["round_trip_ms"]["p50"] >= found["server_ms"]["p50"] > 0
    assert len(found["predicted"]["low"]) == 7


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--state", "1", "2"], "state: float32[2], expected float32[8]"),
        (["--task", "very " * 20], "task: "),
        (["--image", "IMAGE"], "images: 1, expected 2 (image, wrist_image)"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_the_server_refuses_is_the_reason_of_status_1(url, capsys, tmp_path, words, said):
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    given = [str(tmp_path / "image.png") if word == "IMAGE" else word for word in words]
    status, out, error = probe(capsys, url, *given)
    assert (status, out) == (1, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_a_state_out_of_range_is_counted(url, capsys):
    status, out, _ = probe(capsys, url, "--state", "57", *"0" * 7, "--calls", "2")
    assert status == 0
    assert re.search(r"states out of range: j0 2", out)


def test_a_server_that_is_slower_than_its_chunks_is_a_problem(url, capsys, monkeypatch):
    clock = iter(range(0, 10**6, 5))
    monkeypatch.setattr("molmoact2_jax.cli.probe.time.perf_counter", lambda: next(clock))
    status, _, error = probe(capsys, url, "--calls", "2")
    assert status == 1
    assert error == "error: latency: p95 5000 ms, expected less than the 1000 ms that a chunk lasts\n"


def test_probe_without_a_server_is_status_1_and_one_line(capsys, free_port):
    status, _, error = probe(capsys, f"ws://127.0.0.1:{free_port}")
    assert status == 1
    assert error.count("\n") == 1 and "expected a policy server" in error
    assert probe(capsys, "ws://127.0.0.1:1", "--calls", "0")[0] == 2


@pytest.fixture
def free_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_sigterm_ends_it_with_status_0(golden):
    with process(golden / "tiny") as made:
        made.until("READY")
        assert made.end() == 0
        assert made.lines[-2:] == ["ending     SIGTERM: finishing what has begun", "ended      after 0 calls"]


@pytest.mark.parametrize(("number", "moment"), [(signal.SIGTERM, 0), (signal.SIGINT, 0.5), (signal.SIGTERM, 1)])
def test_a_signal_while_loading_ends_it_with_status_0_and_until_then_it_answers_503(golden, number, moment):
    with process(golden / "tiny_think", "--depth", "full") as made:
        url = re.search(r"http://\S+:\d+", made.until("listening"))[0]
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/healthz", timeout=20)
        assert refused.value.code == 503 and "expected READY" in refused.value.read().decode()
        time.sleep(moment)
        assert made.end(number) == 0
        assert any(line.startswith("ending") and number.name in line for line in made.lines)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--norm-tag: missing, expected one of ['libero', 'yam']"),
        (["--norm-tag", "droid"], "norm_tag: 'droid', expected one of"),
        (["--norm-tag", "libero", "--cameras", "a,b,c"], "cameras: ['a', 'b', 'c'], expected some of"),
        (["--norm-tag", "libero", "--depth", "full"], "does not reason about depth"),
        (["--norm-tag", "libero", "--batch", "3"], "most_together: 3, expected 1, 2, 4, 8"),
        (["--norm-tag", "libero", "--n-action-steps", "11"], "n_action_steps: 11, expected 1 to 10"),
        (["--norm-tag", "libero", "--state-margin", "-1"], "guard margin: -1.0"),
        (["--norm-tag", "libero", "--host", "203.0.113.1"], "cannot listen on 203.0.113.1:0"),
        (["--norm-tag", "libero", "--token-file", "EMPTY"], "holds no word"),
    ],
)
def test_bad_input_is_one_line_and_status_2(golden, capsys, tmp_path, words, said):
    (tmp_path / "empty").write_text("\n")
    given = [str(tmp_path / "empty") if word == "EMPTY" else word for word in words]
    assert main.main(["serve", str(golden / "tiny"), "--port", "0", "--dtype", "float32", *given]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error


def test_a_directory_that_is_no_checkpoint_is_refused(tmp_path, capsys):
    assert main.main(["serve", str(tmp_path), "--port", "0"]) == 2
    assert "config.json" in capsys.readouterr().err
