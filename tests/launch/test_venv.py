import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent

PYTHON = f"""#!/bin/bash
if [[ $1 == -m && $2 == pip ]]; then
  echo "$@" >>"$(dirname "$0")/../calls"
  echo "what pip says"
  exit "$PIP_STATUS"
fi
exec {sys.executable} "$@"
"""


@pytest.fixture
def prepare(tmp_path):
    """Calls `prepare dev` on an environment whose pip only notes that it was called."""
    directory = tmp_path / "venv"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").write_text(PYTHON)
    (directory / "bin" / "python").chmod(0o755)

    def call(
        *, status: int = 0, extras: str = "dev", **variables: str
    ) -> tuple[subprocess.CompletedProcess, list[str]]:
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHON"}
        env = inherited | {"VENV": str(directory), "PIP_STATUS": str(status)} | variables
        script = f"source launch/venv.sh; prepare {extras}"
        done = subprocess.run(["bash", "-uc", script], cwd=ROOT, env=env, capture_output=True, text=True)
        calls = directory / "calls"
        return done, calls.read_text().splitlines() if calls.exists() else []

    return call


def test_the_package_is_installed_once_with_the_lock_as_constraints(prepare):
    for _ in range(2):
        done, calls = prepare()
        assert done.returncode == 0
        assert calls == ["-m pip install -c requirements.lock -e .[dev]"]
    assert done.stderr == ""


def test_other_extras_are_installed_in_addition(prepare):
    prepare()
    _, calls = prepare(extras="plot")
    assert calls[-1].endswith("-e .[plot]")
    assert len(calls) == 2


def test_a_failed_installation_shows_the_log_and_is_tried_again(prepare):
    done, _ = prepare(status=3)
    assert done.returncode == 1
    assert "what pip says" in done.stderr
    assert "error: the installation failed" in done.stderr
    done, calls = prepare()
    assert done.returncode == 0
    assert len(calls) == 2


def test_an_interpreter_that_does_not_fit_is_refused_before_anything_is_made(prepare, tmp_path):
    done, calls = prepare(PYTHON="/bin/false", VENV=str(tmp_path / "new"))
    assert done.returncode == 1
    assert "expected Python 3.11, 3.12 or 3.13" in done.stderr
    assert not (tmp_path / "new").exists()
    assert not calls


@pytest.mark.parametrize("name", ["launch/quickstart", "launch/test", "launch/lock", ".ci/run"])
def test_the_scripts_can_be_started(name):
    assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / name).read_text().startswith("#!/usr/bin/env ")
