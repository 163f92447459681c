"""An address is never made a path of this machine, and names beside and below it are found as a path's are."""

from pathlib import Path

import pytest

from megascratch.config.errors import UserError
from megascratch.storage.path import StoragePath, storage_path


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("runs/mine", Path("runs/mine")),
        ("/runs/mine", Path("/runs/mine")),
        ("file:///runs/mine", Path("/runs/mine")),
        ("s3://bucket/run/", StoragePath("s3://bucket/run")),
        ("gs://bucket/run//", StoragePath("gs://bucket/run")),
        (Path("x"), Path("x")),
        (StoragePath("s3://b"), StoragePath("s3://b")),
    ],
)
def test_what_the_user_calls_it(said, meant):
    assert storage_path(said) == meant


@pytest.mark.parametrize("said", ["s3://", "s3:///", "://bucket"])
def test_an_address_without_a_bucket_is_refused(said):
    with pytest.raises(UserError, match="is not a complete address: use s3://bucket/folder"):
        storage_path(said)


def test_names_are_those_of_a_path():
    step = storage_path("s3://bucket/run") / "step_00000001"
    assert (str(step), step.name, str(step.parent)) == (
        "s3://bucket/run/step_00000001",
        "step_00000001",
        "s3://bucket/run",
    )
    assert (
        str(step.with_name("other")) == "s3://bucket/run/other"
        and sorted([step, step.parent])[1] == step
    )
