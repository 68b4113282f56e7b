import logging

import pytest

from molmoact2_jax.checkpoint import storage
from molmoact2_jax.train import folder


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A directory that passes for an address: folders cannot tell, since they only copy whole files there."""
    monkeypatch.setattr(storage, "is_address", lambda where: str(where).startswith(str(tmp_path / "bucket")))
    (tmp_path / "bucket").mkdir()
    for name in ("tensorboard", "pictures"):
        (tmp_path / "bucket" / name).mkdir()
    return tmp_path / "bucket"


def test_in_a_directory_files_are_written_where_they_belong(tmp_path):
    with folder.create(tmp_path, ["metrics.jsonl"]) as opened:
        assert opened.path == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_what_changed_since_the_last_push_is_copied_and_nothing_else(bucket, monkeypatch):
    copies, copy = [], storage.copy
    with folder.create(bucket, []) as opened:
        monkeypatch.setattr(storage, "copy", lambda a, b: copies.append(b.name) or copy(a, b))
        for step in range(3):
            with (opened.path / "metrics.jsonl").open("a") as file:
                file.write(f"{step}\n")
            if step < 2:
                (opened.path / "pictures").mkdir(exist_ok=True)
                (opened.path / "pictures" / f"{step}.png").write_bytes(b"picture")
                opened.push()
                assert (bucket / "metrics.jsonl").read_text() == "0\n1\n"[: 2 * step + 2]
    assert (bucket / "metrics.jsonl").read_text() == "0\n1\n2\n"
    assert copies == ["metrics.jsonl", "0.png", "metrics.jsonl", "1.png", "metrics.jsonl"]
    assert not opened.path.exists()


def test_a_resumed_run_goes_on_with_its_files(bucket):
    (bucket / "metrics.jsonl").write_text("0\n")
    (bucket / "tensorboard" / "events.1").write_bytes(b"large, and left where it is")
    with folder.create(bucket, ["metrics.jsonl", "wandb_id"]) as opened:
        assert [path.name for path in opened.path.iterdir()] == ["metrics.jsonl"]
        with (opened.path / "metrics.jsonl").open("a") as file:
            file.write("1\n")
    assert (bucket / "metrics.jsonl").read_text() == "0\n1\n"
    assert (bucket / "tensorboard" / "events.1").exists()


def test_between_checkpoints_a_report_pushes_once_a_minute(bucket, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(folder.time, "monotonic", lambda: now[0])
    with folder.create(bucket, []) as opened:
        (opened.path / "metrics.jsonl").write_text("0\n")
        opened.push_if_due()
        assert not (bucket / "metrics.jsonl").exists()
        now[0] += folder.SECONDS
        opened.push_if_due()
        assert (bucket / "metrics.jsonl").exists()


def broken(*_):
    raise RuntimeError("503")


def test_a_push_that_fails_is_reported_and_made_up_for(bucket, monkeypatch, caplog):
    with folder.create(bucket, []) as opened:
        (opened.path / "metrics.jsonl").write_text("0\n")
        with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
            patch.setattr(storage, "copy", broken)
            opened.push()
        assert "files could not be copied (RuntimeError: 503)" in caplog.text
        opened.push()
        assert (bucket / "metrics.jsonl").read_text() == "0\n"


def test_what_could_not_be_copied_in_the_end_is_kept_and_named(bucket, monkeypatch):
    monkeypatch.setattr(storage, "copy", broken)
    opened = folder.create(bucket, [])
    (opened.path / "metrics.jsonl").write_text("0\n")
    with pytest.raises(OSError, match=rf"{bucket}: .*503.* They are in {opened.path}"), opened:
        pass
    assert (opened.path / "metrics.jsonl").exists()


def test_the_error_that_ends_a_run_is_not_hidden_by_a_failing_copy(bucket, monkeypatch):
    monkeypatch.setattr(storage, "copy", broken)
    opened = folder.create(bucket, [])
    (opened.path / "metrics.jsonl").write_text("0\n")
    with pytest.raises(KeyError, match="the run"), opened:
        raise KeyError("the run")
