import sys

import pytest

from molmoact2_jax.cli import main
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


def test_a_backend_that_hangs_does_not_work(monkeypatch):
    monkeypatch.setattr(rendering, "PROBE", "import time; time.sleep(60)")
    monkeypatch.setattr(rendering, "PATIENCE", 0.5)
    assert not rendering.works("egl")


def test_a_command_that_cannot_draw_says_so_in_one_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(rendering, "works", lambda backend: False)
    for name in [name for name in sys.modules if name.split(".")[0] == "mujoco" or name.endswith("envs.metaworld")]:
        monkeypatch.delitem(sys.modules, name)
    words = ["collect", str(tmp_path / "data"), "--env", "metaworld", "--tasks", "reach", "--processes", "0"]
    assert main.main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: rendering: neither egl nor osmesa works here") and error.count("\n") == 1
