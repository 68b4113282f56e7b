import importlib.util
import pathlib

import pytest

from molmoact2_jax.checkpoint import storage


def test_a_directory_is_a_plain_path(tmp_path):
    assert storage.path(tmp_path / "run") == tmp_path / "run"
    assert isinstance(storage.path("runs/mine"), pathlib.Path)
    assert storage.near(tmp_path) == tmp_path and storage.local(str(tmp_path)) == tmp_path


def test_an_address_keeps_its_slashes():
    assert str(storage.path("gs://bucket/run") / "model.json") == "gs://bucket/run/model.json"


@pytest.mark.parametrize("address", ["s3://bucket/run", "az://bucket/run", "hdfs://host/run", "file:///run"])
def test_other_storage_is_refused_with_the_way_around(address):
    with pytest.raises(ValueError, match=rf"{address}, expected a directory or gs://.* Mount the bucket"):
        storage.path(address)


def test_without_gcsfs_the_extra_that_brings_it_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"gs://bucket/run .* Run pip install 'molmoact2-jax\[gcs\]'"):
        storage.path("gs://bucket/run")


def test_what_must_be_in_a_directory_is_not_taken_from_an_address():
    with pytest.raises(ValueError, match=r"gs://bucket/released holds no run.* Copy it to this machine"):
        storage.local("gs://bucket/released")
