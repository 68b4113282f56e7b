import sys

import pytest

from molmoact2_jax.envs import rendering

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems draw as they are")


@pytest.fixture(autouse=True)
def unset(monkeypatch):
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delitem(sys.modules, "mujoco.gl_context", raising=False)
    rendering._first_that_works.cache_clear()
    yield
    rendering._first_that_works.cache_clear()


def test_the_first_backend_that_works_is_taken_and_inherited(monkeypatch):
    monkeypatch.setattr(rendering, "works", lambda backend: backend == "osmesa")
    assert rendering.choose() == "osmesa"
    assert rendering.state() == "MUJOCO_GL=osmesa"


def test_a_backend_that_the_user_set_is_kept(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(rendering, "works", lambda backend: True)
    assert rendering.choose() == "osmesa"


def test_without_any_backend_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(rendering, "works", lambda backend: False)
    with pytest.raises(OSError, match=r"apt-get install -y libegl1 libgl1") as error:
        rendering.choose()
    assert "\n" not in str(error.value)
