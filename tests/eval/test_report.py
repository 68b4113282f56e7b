import dataclasses
import html.parser
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from molmoact2_jax.cli import main
from molmoact2_jax.eval import report, timings
from molmoact2_jax.eval.report_inputs import Places
from tests.eval import reported


class Reader(html.parser.HTMLParser):
    """Collects rows of tables, addresses, names of elements, and checks that elements are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, page):
        super().__init__()
        self.rows, self.addresses, self.names, self.captions, self._open = [], [], set(), [], []
        self.words = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.names.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "poster")]
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if "td" in self._open or "th" in self._open:
            self.rows[-1][-1] += data
        if "figcaption" in self._open:
            self.captions.append(data)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return reported.everything(tmp_path_factory.mktemp("reported"))


@pytest.fixture(scope="module")
def page(places):
    return report.build(places).html


def result(directory):
    return json.loads((directory / "rollout.json").read_text())


def test_the_page_needs_no_network_no_script_and_no_other_file(page):
    found = Reader(page)
    assert found.addresses and all(address.startswith("data:image/") for address in found.addresses)
    assert not found.names & {"script", "link", "iframe", "object", "embed"}
    assert not re.search(r"https?:|url\(|@import", page)


@pytest.mark.parametrize("which", ["rollout", "control", "random"])
def test_each_row_says_what_the_file_counted(page, places, which):
    found, rows = result(getattr(places, which)), Reader(page).rows
    for name, share in [*found["tasks"].items(), ("all", found["success"])]:
        count = f"{share['successes']}/{share['episodes']}"
        bounds = f"{share['low']:.0%} to {share['high']:.0%}"
        assert any(row[0] == name and {count, f"{share['rate']:.0%}", bounds} <= set(row) for row in rows)


def test_the_controls_stand_beside_the_policy(page, places):
    rates = {which: result(getattr(places, which))["success"] for which in ("rollout", "control", "random")}
    assert rates["rollout"]["rate"] == 0.5 and rates["control"]["rate"] == 0
    tiles = re.findall(r'<div class="tile"><b class="(\w+)">(\d+%)</b>.*?<span>(\d+/\d+)', page)
    assert tiles == [
        (style, f"{share['rate']:.0%}", f"{share['successes']}/{share['episodes']}")
        for style, share in zip(("policy", "control", "random"), rates.values(), strict=True)
    ]
    own = rates["rollout"], result(places.rollout)["tasks"]["go-red"]
    told = next(row for row in Reader(page).rows if row[:2] == ["go-red", "Go to the blue square"])
    assert told[2] == f"{own[1]['successes']}/{own[1]['episodes']}" and told[3] == "0/4"


def test_losses_errors_and_costs_are_those_of_the_files(page, places):
    rows = Reader(page).rows
    for row in (
        ["steps", "100"],
        ["loss", "0.14"],
        ["seconds per step", "0.125"],
        ["open_loop/toy, step 100", "0.3456"],
    ):
        assert row in rows
    assert ["validation/loss/flow, step 100", "0.2345"] in rows
    found = json.loads((places.open_loop / "open_loop.json").read_text())
    for name, channel in found["channels"].items():
        assert [name, *(f"{channel[key]:.4g}" for key in ("error", "constant", "spread"))] in rows
    parts = timings.read(places.timings)
    assert list(parts) == ["collect", "train"] and all(part["peak_bytes"] > 50e6 for part in parts.values())
    for name, part in parts.items():
        assert any(row[0] == name and row[2:] == [f"{part['seconds']:.1f}", f"{part['peak_bytes'] / 1e9:.2f}"]
                   for row in rows)  # fmt: skip


def test_pictures_show_a_success_and_a_failure_of_each_task(page):
    captions = Reader(page).captions
    for task in ("go-red", "go-blue"):
        assert sum(c.startswith(f"{task}, seed") and "success after" in c for c in captions) == 1
        assert sum(c.startswith(f"{task}, seed") and "failure after" in c for c in captions) == 1
    assert {"episode 7", "horizon", "Go to the red square", "Go to the blue square"} <= set(captions)


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path):
    made = report.build(Places(rollout=tmp_path))
    assert made.missing == tuple(report.COMMANDS)
    words = Reader(made.html).words
    for name, command in report.COMMANDS.items():
        assert f"Missing: {name}. This makes it:" in words and command in words


@pytest.mark.parametrize(
    ("part", "name"),
    [("run", "training"), ("control", "swapped instructions"), ("random", "random weights"), ("open_loop", "open loop"),
     ("timings", "time and memory"), ("rollout", "rollout")],
)  # fmt: skip
def test_any_part_may_be_missing(places, part, name):
    made = report.build(dataclasses.replace(places, **{part: None}))
    assert made.missing == (name,) and report.COMMANDS[name] in Reader(made.html).words


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (lambda p: dict(control=p.rollout), "expected others"),
        (lambda p: dict(random=p.rollout), "trained weights"),
        (lambda p: dict(rollout=p.random), "a control, expected the policy itself"),
        (lambda p: dict(rollout=p.control), "a control, expected the policy itself"),
    ],
)
def test_results_in_each_others_place_are_refused(places, wrong, words):
    with pytest.raises(ValueError, match=words):
        report.build(dataclasses.replace(places, **wrong(places)))


def test_controls_that_were_measured_otherwise_are_marked(page, places, tmp_path):
    assert "Not measured alike" not in page
    other = result(places.control)
    other["protocol"]["seeds"], other["policy"]["digest"] = [9], "ffff"
    (tmp_path / "rollout.json").write_text(json.dumps(other))
    made = report.build(dataclasses.replace(places, control=tmp_path)).html
    assert "Not measured alike: seeds: [0, 1, 2, 3] and [9]; checkpoint: 0123456789abcdef and ffff" in made


def test_words_of_files_cannot_become_elements(places, tmp_path):
    found = result(places.random)
    found["episodes"][0]["instruction"] = "<script>alert(1)</script>"
    found["episodes"] = found["episodes"][:1]
    (tmp_path / "rollout.json").write_text(json.dumps(found))
    made = report.build(Places(random=tmp_path), title="a < b").html
    assert "script" not in Reader(made).names and "<title>a &lt; b</title>" in made


def test_a_run_without_language_draws_no_language_loss(places):
    lines = [json.loads(line) for line in (places.run / "metrics.jsonl").read_text().splitlines()]
    titles = [axes.get_title(loc="left") for axes in report.report_plots.training(lines).axes]
    assert titles == ["loss/flow", "open-loop error, toy"]


def test_metrics_without_a_loss_are_refused(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "validation/loss": 2}\n')
    with pytest.raises(ValueError, match="no loss in 1 lines"):
        report.build(Places(run=tmp_path))


def test_timings_of_a_part_in_two_runs_are_added_and_its_status_is_passed_on(tmp_path):
    file = tmp_path / "timings.jsonl"
    timings.record(file, "train", 2.5)
    assert timings.measure(file, "train", ["sh", "-c", "exit 3"]) == 3
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["status"] for line in lines] == [0, 3]
    part = timings.read(file)["train"]
    assert part["runs"] == 2 and part["seconds"] == pytest.approx(sum(line["seconds"] for line in lines))
    file.write_text("torn")
    with pytest.raises(ValueError, match=r"timings.jsonl:1: 'torn', expected part, seconds"):
        timings.read(file)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_part_that_is_interrupted_saves_before_it_ends_and_is_recorded(tmp_path, number):
    part = "trap 'sleep 0.5; exit 7' INT TERM; touch ready; while :; do sleep 0.02; done"
    words = [sys.executable, "-m", "molmoact2_jax.eval.timings", "timings.jsonl", "train", "sh", "-c", part]
    environment = os.environ | {"PYTHONPATH": str(pathlib.Path(__file__).parents[2])}
    process = subprocess.Popen(
        words, cwd=tmp_path, start_new_session=True, env=environment,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # ignored in what a shell runs behind itself
    )  # fmt: skip
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.killpg(process.pid, number)
    assert process.wait(timeout=60) == 7
    assert timings.read(tmp_path / "timings.jsonl")["train"]["seconds"] >= 0.5


def test_the_command_writes_the_page_and_names_what_it_lacks(places, tmp_path, capsys):
    target = tmp_path / "deep" / "report.html"
    words = ["eval", "report", "--rollout", str(places.rollout), "--run", str(places.run), "--to", str(target)]
    assert main.main(words) == 0
    shown = capsys.readouterr().out
    assert "missing open loop: molmoact2 eval open-loop" in shown and "missing training" not in shown
    assert pathlib.Path(target).read_text().startswith("<!doctype html>")
    assert main.main([*words, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["missing"]) == {
        "swapped instructions", "random weights", "open loop", "time and memory"
    }  # fmt: skip
