import dataclasses
import io
import json
import pathlib
import re
import shutil
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "data"))

import damages
import fixtures
import formats

from molmoact2_jax.cli import data, dataset, main, meter
from molmoact2_jax.data import norm_stats, quarantine, stats
from molmoact2_jax.text import actions


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return formats.sound_copies(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def row(tmp_path_factory):
    """A JSON file that says what the columns of the RLDS datasets mean."""
    path = tmp_path_factory.mktemp("row") / "row.json"
    path.write_text(json.dumps(dataclasses.asdict(fixtures.ROW)))
    return str(path)


def run(*words):
    return main.main(["data", *map(str, words)])


def test_statistics_of_two_formats_of_the_same_data_agree(sound, row, tmp_path, capsys):
    assert run("stats", sound[formats.RLDS], "--as", row, "--out", tmp_path / "n.json", "--tag", "rlds") == 0
    assert run("stats", sound[formats.V3], "--out", tmp_path / "n.json", "--tag", "lerobot") == 0
    shown = capsys.readouterr().out
    assert "rlds: quantiles exact, digest " in shown and "passes through raw" in shown
    tags = norm_stats.load(tmp_path / "n.json").tags
    one, other = tags["rlds"], tags["lerobot"]
    assert one.action.q01 == other.action.q01 and one.state.std == other.state.std
    assert one.horizon == 10 and stats.intact(one) and stats.intact(other)


def test_statistics_of_a_union_are_exact_and_those_of_files_are_not(sound, tmp_path):
    for kind in (formats.V3, formats.V21):
        assert run("stats", sound[kind], "--tag", "arm", "--out", tmp_path / f"{kind}.json") == 0
    files = [tmp_path / f"{kind}.json" for kind in (formats.V3, formats.V21)]
    assert run("stats", *files, "--tag", "arm", "--out", tmp_path / "merged.json") == 0
    assert run("stats", sound[formats.V3], sound[formats.V21], "--tag", "arm", "--out", tmp_path / "union.json") == 0
    merged, union = (norm_stats.load(tmp_path / f"{n}.json").tag("arm") for n in ("merged", "union"))
    assert merged.provenance["quantiles"] == stats.AVERAGED and union.provenance["quantiles"] == stats.EXACT
    assert merged.action.count == union.action.count == 2 * sum(formats.LENGTHS)
    assert len(union.provenance["datasets"]) == 2


def test_statistics_that_datasets_bring_are_merged_without_their_columns(sound, tmp_path):
    files = [tmp_path / name / "meta" / "stats.json" for name in "ab"]
    for path in files:
        shutil.copytree(sound[formats.V3] / "meta", path.parent)
    assert run("stats", *files, "--tag", "arm", "--out", tmp_path / "merged.json") == 0
    merged = norm_stats.load(tmp_path / "merged.json").tag("arm")
    assert merged.action.count == 2 * sum(formats.LENGTHS) and merged.horizon == 10
    assert merged.provenance["quantiles"] == stats.AVERAGED


def test_a_dead_scale_is_refused_unless_it_is_allowed(tmp_path, capsys):
    made = formats.smooth((120, 100))
    for episode in made:
        episode.state[:, 2] = 0
    made[0].state[7, 2] = 5
    directory = formats.write(formats.V3, tmp_path / "data", made)
    assert run("stats", directory) == 1
    assert "dead scale: channel 2 (joint_2.pos): q99 - q01 = 0 but it moves from 0 to 5" in capsys.readouterr().out
    assert run("stats", directory, "--allow-dead") == 0


def test_a_fit_to_a_checkpoint_names_units_and_fails(sound, tmp_path, capsys):
    made = [dataclasses.replace(e, state=np.degrees(e.state), action=np.degrees(e.action)) for e in formats.smooth()]
    degrees = formats.write(formats.V3, tmp_path / "degrees", made)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    common = ("--tag", "arm", "--normalize-gripper")
    assert run("stats", sound[formats.V3], *common, "--out", checkpoint / "norm_stats.json") == 0
    capsys.readouterr()
    assert run("stats", sound[formats.V3], *common, "--fit", checkpoint, "--json") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["fit"]["lerobot"]["findings"] == []
    assert run("stats", degrees, *common, "--fit", checkpoint) == 1
    assert "look like degrees, where the tag has radians" in capsys.readouterr().out


def test_statistics_of_another_robot_fit_no_tag_and_replace_none(sound, golden, tmp_path, capsys):
    listed = tmp_path / "norm_stats.json"
    listed.write_text((golden / "tiny" / "norm_stats.json").read_text())
    before = listed.read_text()
    assert run("stats", sound[formats.V3], "--tag", "yam", "--fit", tmp_path) == 1
    assert "error    width: action has" in capsys.readouterr().out
    assert run("stats", sound[formats.V3], "--tag", "yam", "--out", listed) == 2
    assert re.search(r"'yam' has 14 action channels, the dataset \d, .*Choose another --tag", capsys.readouterr().err)
    assert listed.read_text() == before


def test_the_check_quarantines_and_is_clean_the_second_time(sound, tmp_path, capsys):
    directory = damages.hurt("missing camera", formats.V21, sound, tmp_path)
    listed = tmp_path / "quarantine.jsonl"
    common = (directory, "--budget", "0.5", "--quarantine", listed)
    assert run("check", *common) == 1
    shown = capsys.readouterr()
    assert "error    picture: 1" in shown.out and "in all 5 frames" in shown.out
    assert [(e.dataset, e.episode, e.frame) for e in quarantine.read(listed)] == [("data", 1, None)]
    assert run("check", *common, "--json") == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert report["counts"]["error"] == 0 and report["quarantined"] == 5


def test_a_multimodal_set_is_checked_as_training_reads_it(tmp_path, golden, capsys):
    home, listed = tmp_path / "sat", tmp_path / "quarantine.jsonl"
    home.mkdir()
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cup."}]
    lines = [{"messages": turns}, {"messages": turns[:1]}]
    (home / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run("check", home) == 2
    assert "a multimodal set, expected --checkpoint DIR" in capsys.readouterr().out
    words = ("check", home, "--checkpoint", golden / "tiny", "--budget", "0.5", "--quarantine", listed)
    assert run(*words) == 1
    shown = capsys.readouterr().out
    assert "sat: 2 of 2 records: 1 error" in shown and "record 1: ValueError: messages: roles ['user']" in shown
    assert run(*words) == 0
    assert "1 records were quarantined before" in capsys.readouterr().out


def test_the_check_stops_over_budget_and_says_what_to_do(sound, tmp_path, capsys):
    directory = damages.hurt("wrong fps", formats.V3, sound, tmp_path)
    assert run("check", directory, "--budget", "0.05", "--every", "0") == 3
    assert "STOPPED: data: 7 of 27 frames have errors (25.9%), above the budget of 5.0%" in capsys.readouterr().out


def test_a_dataset_that_cannot_be_opened_is_status_2(tmp_path, sound, capsys):
    assert run("check", sound[formats.V3], tmp_path / "nothing", "--every", "4") == 2
    shown = capsys.readouterr().out
    assert "no dataset, expected meta/info.json" in shown and "--as FILE" not in shown


@pytest.mark.parametrize("command", ["check", "stats", "preview", "repack"])
def test_columns_that_nobody_described_are_an_error_that_says_how(command, tmp_path, sound, row, capsys):
    narrow = [dataclasses.replace(e, state=e.state[:, :5], action=e.action[:, :5]) for e in formats.smooth()]
    directory = fixtures.rlds(tmp_path / "data", narrow, joints=5)
    options = () if command in ("check", "stats") else ("--out", tmp_path / "out")
    assert run(command, directory, *options) == 2
    said = "".join(capsys.readouterr())
    assert re.search(r"data: steps/(action|observation/state): 5 channels, expected 8 or more", said)
    assert "describe the dataset's with --as FILE" in said
    assert run(command, directory, "--as", row, *options) == 2
    assert "with --as FILE" not in "".join(capsys.readouterr())


def test_files_and_datasets_are_not_measured_together(sound, tmp_path, capsys):
    assert run("stats", tmp_path / "a.json", sound[formats.V3], "--tag", "arm") == 2
    assert "a.json: statistics among datasets, expected either" in capsys.readouterr().err


def test_the_preview_is_written_where_nobody_says(sound, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("preview", sound[formats.V3], "--episodes", "1") == 0
    assert "see out/preview/lerobot/index.html" in capsys.readouterr().out
    assert (tmp_path / "out" / "preview" / "lerobot" / "cameras.png").exists()


def test_the_preview_is_written(sound, tmp_path, capsys):
    assert run("preview", sound[formats.V3], "--out", tmp_path / "page", "--episodes", "1") == 0
    assert (tmp_path / "page" / "index.html").exists()
    damaged = damages.hurt("NaN action", formats.V3, sound, tmp_path)
    assert run("preview", damaged, "--out", tmp_path / "page2", "--episodes", "1") == 0


def test_filters_fill_the_quarantine_file(sound, tmp_path, capsys):
    listed = tmp_path / "quarantine.jsonl"
    words = ("filter", sound[formats.V3], "--drop-task", "push", "--quarantine", listed)
    assert run(*words, "--dry-run") == 0 and not listed.exists()
    assert run(*words) == 0
    assert [(e.episode, e.frame) for e in quarantine.read(listed)] == [(2, None)]
    assert "18 of 27 frames stay" in capsys.readouterr().out
    assert run("filter", sound[formats.V3], "--drop-task", "push") == 2


def test_repacked_data_has_the_same_statistics(sound, tmp_path, capsys):
    assert run("repack", sound[formats.V3], "--out", tmp_path / "copy", "--size", "70x70") == 0
    for name, path in (("copy", tmp_path / "copy"), ("own", sound[formats.V3])):
        assert run("stats", path, "--tag", "arm", "--out", tmp_path / f"{name}.json") == 0
    tags = [norm_stats.load(tmp_path / f"{name}.json").tag("arm") for name in ("copy", "own")]
    assert tags[0].action == tags[1].action
    assert run("repack", sound[formats.V3], "--out", tmp_path / "x", "--size", "70") == 2


def test_the_tokenizer_writes_chunks_it_did_not_see(sound, tmp_path, capsys):
    words = ("tokenizer", sound[formats.V3], sound[formats.V21], "--out", tmp_path / "fast", "--vocab-size", "512")
    assert run(*words) == 0
    assert "held-out chunks" in capsys.readouterr().out
    codec = actions.ActionCodec.load(tmp_path / "fast")
    chunk = np.zeros((1, 10, 8))
    np.testing.assert_allclose(codec.decode(codec.encode(chunk), 10, 8), chunk, atol=1e-6)


def test_annotations_go_through_a_file(tmp_path, capsys):
    directory = formats.write(formats.V21, tmp_path / "data", formats.smooth())
    listed = tmp_path / "tasks.jsonl"
    assert run("annotate", directory, "--list", listed) == 0
    listed.write_text(listed.read_text("utf-8").replace("pick up the cup", "grasp the red cup"), "utf-8")
    assert run("annotate", directory, "--apply", listed) == 0
    assert formats.open_source(formats.V21, directory).annotation(0) == "grasp the red cup"


def test_a_meaning_of_ones_own_is_read_from_a_file_and_checked(tmp_path, row):
    assert dataset.meaning(row, "x") == fixtures.ROW
    path = tmp_path / "tag.json"
    path.write_text(json.dumps(dataclasses.asdict(formats.TAG)))
    assert dataset.meaning(str(path), "x") == formats.TAG
    content = json.loads(pathlib.Path(row).read_text())
    content["state"][0]["unti"] = "rad"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"state\[0\]\.unti: unknown key.*Did you mean 'unit'"):
        dataset.meaning(str(path), "x")


@pytest.mark.parametrize(("kind", "first"), [(formats.V3, "decode"), (formats.PICTURES, "read")])
def test_the_bench_times_every_stage(kind, first, sound, golden, capsys):
    words = ["data", str(sound[kind]), "--checkpoint", str(golden / "tiny"), "--frames", "20"]
    words += ["--crop-size", "98", "--json"]
    assert main.dispatch(words, {"data": main.Command("bench_data", "")}, "molmoact2 bench") == 0
    content = json.loads(capsys.readouterr().out)
    assert content["crop_size"] == 98
    names = [stage["name"] for stage in content["stages"]]
    expected = ["read", "decode", "resize", "tokenise", "pack", "plan", "batches", "batches"]
    assert names == expected[expected.index(first) :]
    assert content["stages"][-1]["unit"] == "images" and content["stages"][-1]["items"] >= 40
    assert 0 < content["rows"]["fill/tokens"] <= 1 and "load_average" in content
    assert sum(part for name, part in content["rows"].items() if name.startswith("bound/")) == pytest.approx(1)
    assert all(stage["items"] > 0 and stage["core_rate"] > 0 for stage in content["stages"])
    assert next(stage["items"] for stage in content["stages"] if stage["unit"] == "images") == 40


def test_the_bench_prints_what_rows_hold_and_what_bounds_them(sound, golden, capsys):
    words = ["data", str(sound[formats.PICTURES]), "--checkpoint", str(golden / "tiny"), "--frames", "20"]
    assert main.dispatch([*words, "--tokens", "300"], {"data": main.Command("bench_data", "")}, "molmoact2 bench") == 0
    shown = capsys.readouterr().out
    assert re.search(r"rows use \d+% of tokens, \d+% of crops, \d+% of chunks; bounded by tokens 100%", shown)


@pytest.mark.parametrize("name", data.COMMANDS)
def test_every_data_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stop:
        run(name, "--help")
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: molmoact2 data {name}")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_meter_tells_rate_and_time_left():
    clock = iter([0.0, 0.0, 5.0, 5.1, 20.0]).__next__
    screen = Terminal()
    with meter.Meter("checking own", "frames", screen, clock) as progress:
        for done in (0, 100, 102, 400):
            progress(done, 400)
    assert screen.getvalue().split("\r")[1:] == [
        "checking own: 100/400 frames, 20/s, 15s left",
        "checking own: 400/400 frames, 20/s, 0s left \n",
    ]


def test_the_meter_writes_few_lines_into_a_log():
    times = iter(np.arange(0.0, 100.0, 1.0))
    log = io.StringIO()
    with meter.Meter("x", "frames", log, lambda: float(next(times))) as progress:
        for done in range(50):
            progress(done, 50)
    assert len(log.getvalue().splitlines()) == 5 and "\r" not in log.getvalue()
