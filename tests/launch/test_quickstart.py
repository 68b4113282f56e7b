"""`launch/quickstart` with stand-ins: its commands are ones that the parsers accept, and none is repeated once done."""

import argparse
import importlib
import os
import pathlib
import subprocess

import pytest

from molmoact2_jax.cli import main, recipe_flags
from molmoact2_jax.train import recipe

ROOT = pathlib.Path(__file__).parents[2]
NOTE = r"""printf '%s\0' "$@" >>"$CALLS"; printf '\036' >>"$CALLS"
[[ "$*" == *"$FAIL"* ]] && exit 1 || exit 0
"""
PYTHON = f"""#!/bin/bash
case "$*" in
  *molmoact2_jax.eval.timings\\ *) shift 2; {NOTE} ;;
  *) exit 0 ;;
esac
"""


@pytest.fixture
def quickstart(tmp_path):
    """Runs the script with stand-ins that note the parts and fail where they are told to."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    for name, text in (("python", PYTHON), ("molmoact2", f"#!/bin/bash\n{NOTE}")):
        (tmp_path / "venv" / "bin" / name).write_text(text)
        (tmp_path / "venv" / "bin" / name).chmod(0o755)
    calls = tmp_path / "calls"

    def run(*words, fail="no such words"):
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHON"}
        env = inherited | {"VENV": str(tmp_path / "venv"), "CALLS": str(calls), "FAIL": fail}
        command = ["bash", str(ROOT / "launch" / "quickstart"), "--out", str(tmp_path / "out"), *words]
        calls.unlink(missing_ok=True)
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        found = [call.split("\0")[:-1] for call in calls.read_text().split("\x1e")[:-1]] if calls.exists() else []
        return done, found

    return run


def words_of(call):
    """The words of a molmoact2 command behind a noted part, None for a part that is another program."""
    call = call[2:] if call[0].endswith("timings.jsonl") else ["molmoact2", *call]
    return call[1:] if call[0].endswith("molmoact2") else None


def accept(words, commands=main.COMMANDS):
    """Parses a command as `molmoact2` would, without running it."""
    name, *rest = words
    module = importlib.import_module(f"molmoact2_jax.cli.{commands[name].module}")
    if name == "train":
        values = recipe_flags.parse("train", rest, lambda values: None)
        return recipe.build(values["config"].value.to_dict())
    if commands[name].own_flags:
        return accept(rest, module.COMMANDS)
    parser = argparse.ArgumentParser()
    module.register(parser.add_subparsers(required=True))
    return parser.parse_args(words)


@pytest.mark.parametrize("words", [[], ["--smoke"]])
def test_every_command_is_one_that_the_parsers_accept(quickstart, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    done, calls = quickstart(*words, "--seed", "7")
    assert done.returncode == 0, done.stderr
    commands = [found for call in calls if (found := words_of(call))]
    assert [words[0] for words in commands] == (
        ["predict", "collect", "data", "data", "init", "train", "export", "eval", "eval", "eval", "eval", "eval"]
    )
    accepted = [accept(words) for words in commands]
    [made] = [one for one in accepted if isinstance(one, recipe.TrainConfig)]
    assert made.seed == 7 and made.data.tokens == 48


def test_finished_parts_are_not_repeated_and_an_interrupted_one_is(quickstart):
    done, calls = quickstart(fail=" train --config")
    assert done.returncode == 1 and words_of(calls[-1])[0] == "train"
    done, again = quickstart()
    assert done.returncode == 0 and words_of(again[0])[0] == "train"
    done, last = quickstart()
    assert [words_of(call)[:2] for call in last] == [["eval", "report"]]


def test_an_unknown_word_is_refused(quickstart):
    done, calls = quickstart("--fast")
    assert done.returncode == 2 and "--fast" in done.stderr and not calls
