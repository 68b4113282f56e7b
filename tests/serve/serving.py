"""A served golden checkpoint in this process, and the observations that the tests send it."""

import contextlib
import http.client
import json

import numpy as np

from molmoact2_jax import Policy
from molmoact2_jax.serve import http as routes
from molmoact2_jax.serve import metadata, server, service

STATE = np.linspace(-0.3, 0.3, 8).astype(np.float32)


def load(directory):
    return Policy.from_pretrained(directory, dtype="float32", unroll=False)


def pictures(seed=0, count=2):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (40, 60, 3)).astype(np.uint8) for _ in range(count)]


@contextlib.contextmanager
def served(policy, *, token=None, max_bytes=1 << 20, warm=True, **settings):
    """Starts a ready server; yields it."""
    chosen = service.Settings(
        norm_tag="libero", cameras=("image", "wrist_image"), **({"max_task_tokens": 24} | settings)
    )
    made = service.Service(policy, chosen)
    if warm:
        made.warm()
    running = server.Server(routes.State(token, max_bytes), port=0)
    try:
        digest = metadata.fingerprint(policy.cfg, policy.params)
        running.state.open(made, metadata.of(made, "tiny", digest))
        yield running
    finally:
        assert running.stop()


def ask(running, method, path, body=None, headers=None):
    """One HTTP request; returns status, headers and text."""
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()
    finally:
        connection.close()


def post(running, body, path="/act", headers=None):
    """Posts a decoded JSON body; returns status and decoded answer."""
    status, _, text = ask(running, "POST", path, json.dumps(body), headers)
    return status, json.loads(text)
