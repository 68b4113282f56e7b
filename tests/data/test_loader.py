"""The loader: rows as planned, an exact position in real processes, damage survived by name, memory bounded."""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import checkpoints
import files
import loader_process
import numpy as np
import pytest
import toys

from molmoact2_jax import batch
from molmoact2_jax.data import crew, loader, memory, pack, plan, robot, rows
from molmoact2_jax.data.robot_options import Options as RobotOptions
from molmoact2_jax.data.robot_options import Robot
from molmoact2_jax.data.stream import RowShape, Stream

HERE = pathlib.Path(__file__).parent


def started(state, count, root=None, **options):
    """Starts a process that loads `count` batches from a position: of the toys, or of the real datasets in `root`."""
    argument = json.dumps({"loader": options, "state": state, "count": count, "root": root})
    environment = os.environ | {"PYTHONPATH": str(HERE)}
    command = [sys.executable, str(HERE / "loader_process.py"), argument]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def batches(ours, count):
    return [next(ours) for _ in range(count)]


def finished(process):
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return json.loads(out)


@pytest.fixture(scope="module")
def run():
    """An uninterrupted run: the position after seven batches and the fifty batches that follow."""
    ours = toys.loader()
    for _ in range(7):
        next(ours)
    state = json.loads(json.dumps(ours.state()))
    return state, loader_process.rows(ours, 50), ours.state()


@pytest.fixture(scope="module")
def real_run(tmp_path_factory):
    """As `run`, over files of every format."""
    root = files.write(tmp_path_factory.mktemp("files"))
    ours = files.loaded(root)
    batches(ours, 5)
    state = json.loads(json.dumps(ours.state()))
    return state, loader_process.rows(ours, 50), ours.state(), str(root)


def check_resumed(run, workers, processes):
    state, expected, after, *root = run
    share = dict(workers=workers, processes=processes, prefetch=3)
    parts = [started(state, 50, *root, process=p, **share) for p in range(processes)]
    results = [finished(part) for part in parts]
    merged = {number: digest for result in results for number, digest in result["rows"].items()}
    assert merged == expected
    assert [result["state"] for result in results] == [after] * processes


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (1, 2), (4, 1)])
def test_a_new_process_goes_on_with_the_same_global_batches(run, workers, processes):
    check_resumed(run, workers, processes)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "processes"), [(1, 1), (0, 2), (4, 2)])
def test_any_number_of_workers_and_processes_goes_on_alike(run, workers, processes):
    check_resumed(run, workers, processes)


def test_files_of_every_format_go_on_with_the_same_batches_in_new_processes(real_run):
    check_resumed(real_run, workers=0, processes=2)


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (1, 1), (4, 1), (1, 2), (4, 2)])
def test_files_go_on_alike_with_any_number_of_workers_and_processes(real_run, workers, processes):
    check_resumed(real_run, workers, processes)


def test_the_position_is_that_of_the_batches_returned_not_of_those_made_ahead():
    ahead, plain = toys.loader(workers=1, prefetch=4), toys.loader()
    try:
        assert ahead.state() == plain.state()
        for _ in range(3):
            a, b = next(ahead), next(plain)
            assert loader_process.digests(a) == loader_process.digests(b)
            assert ahead.state() == plain.state()
        ahead.restore(plain.state())
        assert loader_process.digests(next(ahead)) == loader_process.digests(next(plain))
    finally:
        ahead.close()


def test_a_position_is_small():
    ours = toys.loader()
    next(ours)
    assert len(json.dumps(ours.state())) < 4000


def test_rows_hold_their_examples_whole_and_in_order():
    streams = toys.streams(damaged=False)
    planner = plan.RowPlanner(streams["robot"])
    planned = [next(planner) for _ in range(5)]
    made = [rows.make(row.examples, streams["robot"].datasets, toys.shape(3).limits, 0) for row in planned]
    found = rows.stack([m.items for m in made], range(5), toys.shape(3))
    for b, row in enumerate(planned):
        token = crop = window = chunk = 0
        for number, meta in enumerate(row.examples):
            data = streams["robot"].datasets[meta.dataset]
            example = data.example(meta.index, meta.epoch)
            crops, pooling = data.pixels(example)
            at = slice(token, token + meta.tokens)
            for name in ("tokens", "targets", "weights", "positions"):
                np.testing.assert_array_equal(getattr(found, name)[b, at], getattr(example, name))
            assert (found.segments[b, at] == batch.SEGMENT * number).all()
            assert (found.styles[b, at] == example.style).all()
            np.testing.assert_array_equal(found.crops[b, crop : crop + len(crops)], crops)
            shifted = np.where(pooling < 0, -1, pooling + toys.PATCHES * crop)
            np.testing.assert_array_equal(found.pooling[b, window : window + len(pooling)], shifted)
            np.testing.assert_array_equal(found.actions[b, chunk], example.chunk.actions)
            assert found.chunk_example[b, chunk] == number
            token, crop, window, chunk = token + meta.tokens, crop + len(crops), window + len(pooling), chunk + 1
        assert (found.segments[b, token:] == -1).all() and (found.tokens[b, token:] == toys.PAD).all()
        assert not found.weights[b, token:].any() and found.crop_valid[b].sum() == crop
        assert (found.pooling[b, window:] == -1).all() and (found.chunk_example[b, chunk:] == -1).all()


def test_every_example_of_a_finite_part_of_the_stream_is_packed_once():
    stream = toys.streams(damaged=False)["vlm"]
    planner = plan.RowPlanner(stream)
    met = [m.name for _ in range(60) for m in next(planner).examples]
    waiting = [tuple(sizes[:3]) for sizes in planner.state()["waiting"]]
    drawn = planner.state()["position"]
    assert len(set(met + waiting)) == len(met + waiting) == drawn
    first_epoch = sorted(index for _, index, epoch in met + waiting if epoch == 0)
    assert first_epoch == list(range(50))


def test_steps_take_the_stream_of_the_schedule_and_rows_count_through():
    ours = toys.loader(vlm_rate=0.3)
    for step in range(12):
        found = next(ours)
        assert found.tokens.shape == (4, 120 if ours.stream(step) == "vlm" else 100)
        np.testing.assert_array_equal(found.row, 4 * step + np.arange(4))
    assert {ours.stream(step) for step in range(12)} == {"robot", "vlm"}


def test_processes_share_the_rows_of_one_global_batch():
    whole = toys.loader()
    halves = [toys.loader(processes=2, process=p) for p in range(2)]
    for _ in range(5):
        expected = loader_process.digests(next(whole))
        parts = [loader_process.digests(next(half)) for half in halves]
        assert parts[0] | parts[1] == expected and not parts[0].keys() & parts[1].keys()


def test_damage_is_counted_named_and_replaced_from_the_same_dataset(caplog):
    ours = toys.loader()
    held = collections.Counter()
    for _ in range(60):
        found = next(ours)
        held.update(len(np.unique(s[s >= 0])) for s in found.segments)
    report = ours.report
    names = {(dataset, episode) for dataset, episode, _ in report.quarantined}
    assert names == {("arm", i) for i in (3, 22, 41, 5, 28, 51)} | {("words", i) for i in (3, 22, 41)}
    assert report.damaged.total() > len(report.quarantined) and all(report.damaged[w] for w in ("planning", "decoding"))
    assert caplog.text.count("quarantined") == len(report.quarantined)  # each is logged once
    assert report.skipped == {"asked to": report.skipped["asked to"]} and report.skipped["asked to"] > 0
    assert sum(n * count for n, count in held.items()) > 0.98 * report.examples


def test_a_process_that_decodes_a_part_is_as_strict_as_one_that_decodes_all():
    shares = []
    for processes in (1, 4):
        ours = toys.loader(processes=processes)
        batches(ours, 120)
        shares.append(ours.report.damage())
    assert shares[1] == pytest.approx(shares[0], rel=0.35)


def test_real_datasets_load_alike_in_a_worker(golden):
    archive = checkpoints.load(golden / "tiny")
    tag = archive.stats.tag("libero")
    rng = np.random.default_rng(0)
    values = [rng.uniform(of.q01, of.q99, (12, of.width)) for of in (tag.state, tag.action)]
    views = {name: rng.integers(0, 256, (12, 20, 30, 3), dtype=np.uint8) for name in tag.cameras}
    source = memory.MemorySource("arm", [memory.Episode(*values, views, "lift the lid")])
    arm = robot.RobotDataset(
        source, Robot("libero", tag, archive.stats.mode, archive.codec), archive.encoding, RobotOptions(augment="full")
    )
    grid, ids = 5, archive.encoding.ids
    shape = RowShape(pack.Limits(700, 8, 5), 70, grid**2, 8 * 9, 4, 30, 32, ids.pad)
    results = []
    for workers in (0, 1):
        ours = loader.Loader({"robot": Stream([arm], np.ones(1), shape, buffer=6)}, loader.Options(2, workers=workers))
        results.append(batches(ours, 3))
        ours.close()
    for a, b in zip(*results):
        assert loader_process.digests(a) == loader_process.digests(b)
        for row in range(2):
            patches = (a.tokens[row] == ids.image_patch).sum()
            assert patches == (a.pooling[row] >= 0).any(axis=1).sum() > 0  # an image token has its window
            assert (a.pooling[row, patches:] == -1).all()


def test_a_replacement_never_breaks_a_limit():
    streams = toys.streams()
    planner = plan.RowPlanner(streams["robot"])
    limits, replaced = toys.shape(3).limits, 0
    for _ in range(150):
        row = next(planner)
        made = rows.make(row.examples, streams["robot"].datasets, limits, 0)
        sizes = pack.sizes_of([item.example.meta(0, 0, 0) for item in made.items]).sum(axis=0)
        assert not limits.exceeded(sizes)
        replaced += len(made.damage)
    assert replaced


def test_too_much_damage_stops_with_an_error_that_names_the_last():
    ours = toys.loader(max_damage=0.001, grace=3)
    with pytest.raises(loader.DamageError, match=r"4 damaged .* are 3 and 0.10%; the last: (arm|words), episode"):
        batches(ours, 200)


def test_examples_over_a_limit_are_skipped_and_counted():
    streams = {"vlm": Stream([toys.Toy("words", 50, False)], np.ones(1), toys.shape(0, tokens=30), buffer=8)}
    ours = loader.Loader(streams, loader.Options(global_batch=2))
    for _ in range(10):
        next(ours)
    assert set(ours.report.skipped) == {"tokens over the limit"}


def test_a_stream_of_which_nothing_fits_stops_with_the_reasons():
    streams = {"vlm": Stream([toys.Toy("words", 50, True)], np.ones(1), toys.shape(0), buffer=8)}
    with pytest.raises(ValueError, match=r"'chunks over the limit': 1000"):
        next(loader.Loader(streams, loader.Options(global_batch=2)))


def test_the_report_says_how_full_rows_are_and_what_bounds_them():
    ours = toys.loader()
    for _ in range(20):
        next(ours)
    report = ours.report
    assert report.rows == 80 and sum(report.bounds.values()) == 80
    fill = report.fill()
    assert set(fill) == set(pack.LIMITS) and all(0 < part <= 1 for part in fill.values())
    assert max(fill.values()) > 0.8
    scalars = report.scalars()
    assert sum(part for name, part in scalars.items() if name.startswith("bound/")) == pytest.approx(1)
    assert scalars["fill/tokens"] == fill["tokens"] and scalars["skipped/asked_to"] == report.skipped["asked to"]
    assert scalars["quarantined"] == len(report.quarantined) > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["streams"]["robot"]["identity"].update(seed=1), "seed: 1, now 50189"),
        (lambda s: s["streams"]["robot"]["identity"].update(datasets="x"), "datasets: x"),
        (lambda s: s["streams"].pop("vlm"), r"streams \['robot'\], expected \['robot', 'vlm'\]"),
        (lambda s: s.update(version=1), "a position of version 1, expected 2"),
    ],
)
def test_a_position_of_other_data_is_refused_in_words(run, change, words):
    state = json.loads(json.dumps(run[0]))
    change(state)
    with pytest.raises(ValueError, match=words):
        toys.loader().restore(state)


@pytest.mark.parametrize(
    "options",
    [{"global_batch": 3, "processes": 2}, {"global_batch": 4, "process": 2, "processes": 2}],
)
def test_a_batch_that_does_not_divide_is_refused(options):
    with pytest.raises(ValueError, match="Change global_batch"):
        loader.Options(**options)


def test_two_streams_need_the_names_of_the_schedule():
    with pytest.raises(ValueError, match='"robot" and "vlm"'):
        plan.Schedule(("a", "b"))


def test_the_data_side_never_imports_jax():
    code = "import sys, molmoact2_jax.data.loader, molmoact2_jax.data.robot; print('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def children(pid):
    tasks = pathlib.Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def alive(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="reads /proc")
def test_workers_end_with_a_caller_that_was_killed(run):
    process = started(run[0], 10**6, workers=2)
    deadline = time.monotonic() + 60
    while len(found := children(process.pid)) < 4 and time.monotonic() < deadline:  # planner, two makers, tracker
        time.sleep(0.1)
    assert len(found) == 4
    time.sleep(1.0)  # until their watching threads run
    process.kill()
    process.communicate()
    while any(map(alive, found)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, found))


def test_a_signal_to_the_whole_job_leaves_the_workers_to_finish():
    squad = crew.Crew(toys.Who(), 1)
    try:
        pid = squad.submit("pid").result()
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert squad.submit("pid").result() == pid
    finally:
        squad.close()


def test_a_worker_that_dies_is_an_error_in_words():
    ours = toys.loader(workers=1)
    next(ours)
    for pid in list(ours._crews[1]._pool._processes):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(ChildProcessError, match="a worker process died"):
        batches(ours, 20)
    ours.close()


def test_an_error_of_a_call_reaches_the_caller_with_and_without_processes():
    for count in (0, 1):
        squad = crew.Crew(toys.Who(), count)
        with pytest.raises(AttributeError):
            squad.submit("no_such_method").result()
        squad.close()


def resident(pid):
    """Bytes that a process and its children hold."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(map(resident, children(pid)))


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="reads /proc")
def test_memory_stays_flat_over_ten_thousand_batches():
    ours = toys.loader(workers=1)
    try:
        held = []
        for _ in range(10):
            for _ in range(1000):
                next(ours)
            held.append(resident(os.getpid()))
        assert max(held[2:]) < held[1] + 8e6, held
    finally:
        ours.close()


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc").exists(), reason="reads /proc")
def test_memory_stays_flat_over_ten_thousand_batches_of_real_files(real_run):
    ours, held = files.loaded(real_run[3], augment="none"), []
    for _ in range(10):
        for _ in range(1000):
            next(ours)
        held.append(resident(os.getpid()))
    assert max(held[3:]) < held[2] + 8e6, held
