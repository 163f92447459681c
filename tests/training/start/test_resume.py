"""A resume that would change the data or the model is refused with both values; the ranks of a launch start alike."""

import shutil
import socket

import pytest

from megascratch.checkpoint import read_manifest
from megascratch.commands import main
from tests.support.corpora import write
from tests.support.pretrain_runs import flags, refused, rows
from tests.support.resumed_runs import DIFFERENCES, TEXT, started_together

SETTINGS = {"split": "8,2,0", "train_iters": 2, "lr_decay_iters": 8, "lr_warmup_iters": 1}


@pytest.fixture(scope="module", params=["keyed", "megatron"])
def run(request, tmp_path_factory):
    """A run of two steps in one of the two orders: (its folder, the flags that go on)."""
    folder = tmp_path_factory.mktemp("run")
    settings = SETTINGS | {"data_order": request.param, "data_path": write(folder / "corpus", TEXT)}
    assert main(flags(folder / "out", **settings)) == 0
    return folder, settings | {"load": folder / "out" / "checkpoints"}


def test_a_checkpoint_says_what_it_was_trained_on(run):
    folder, settings = run
    state = read_manifest(settings["load"] / "step_00000002").state
    assert list(state["data_files"]) == [settings["data_path"]]
    assert (
        state["data_files"][settings["data_path"]][".bin"]["bytes"]
        == (folder / "corpus.bin").stat().st_size
    )


def test_what_may_not_change_is_refused_all_at_once_with_both_values(run, capsys):
    folder, settings = run
    words = flags(folder / "on", **settings, seed=5, num_layers=3, lr=0.5)
    refused(
        capsys,
        words,
        "2 problems",
        "step_00000002: seed was 1234 and is now 5",
        "--force-resume seed",
        "num-layers was 2 and is now 3: the model has different tensors, and cannot be forced",
    )
    assert not (folder / "on").exists()


def test_in_megatrons_order_the_length_of_the_run_decides_the_samples(run, capsys):
    folder, settings = run
    words = flags(folder / "longer", **settings | {"train_iters": 3})
    if settings["data_order"] == "megatron":
        refused(capsys, words, "train-iters was 2 and is now 3: the order of the samples changes")
        words += ["--force-resume", "train_iters"]
    assert main(words) == 0
    assert (
        "notice: " in (said := capsys.readouterr().out) and "train-iters was 2 and is now 3" in said
    )
    assert [row["step"] for row in rows(folder / "longer") if "grad_norm" in row] == [3]


def test_changed_data_is_refused_with_both_digests_and_moved_data_is_not(run, capsys):
    folder, settings = run
    for suffix in (".bin", ".idx"):
        shutil.copy(folder / f"corpus{suffix}", folder / f"moved{suffix}")
    assert main(flags(folder / "moved_run", **settings | {"data_path": folder / "moved"})) == 0
    assert "the same tokens under another name" in capsys.readouterr().out
    good = (folder / "corpus.bin").read_bytes()
    (folder / "corpus.bin").write_bytes(good[:-2] + b"\x01\x00")
    again = ["data", "record", str(folder / "corpus"), "--overwrite"]
    assert main(again) == 0
    capsys.readouterr()
    words = flags(folder / "on", **settings)
    try:
        refused(
            capsys,
            words,
            f"{settings['data_path']}.bin has changed since the checkpoint",
            "bytes, sha256",
            "and is now",
            "--force-resume data_files",
        )
        assert main([*words, "--force-resume", "data_files"]) == 0
    finally:
        (folder / "corpus.bin").write_bytes(good)
        assert main(again) == 0


def test_what_is_forced_must_be_something_that_can_be(tmp_path, capsys):
    words = flags(tmp_path, mock_data=True)
    refused(
        capsys,
        [*words, "--force-resume", "sed"],
        "force-resume sed is not a setting - did you mean seed?",
    )
    refused(
        capsys, [*words, "--force-resume", "lr"], "it may change without force, or cannot be forced"
    )


# ---- ranks of one launch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "difference",
    [
        "a file that is missing",
        *(pytest.param(name, marks=pytest.mark.deep) for name in list(DIFFERENCES)[:-1]),
    ],
)
def test_ranks_that_do_not_start_alike_all_stop_and_the_first_says_why(tmp_path, difference):
    (code, said, _), (other_code, other_said, _) = started_together(tmp_path, difference)
    assert (code, other_code) == (2, 2), said + other_said
    assert all(part in said for part in DIFFERENCES[difference][3]), said
    assert "Traceback" not in said + other_said and not (tmp_path / "out").exists()
    if "missing" not in difference:
        assert (
            "what" in said
            and f"{socket.gethostname()} (rank 0)" in said
            and "node-b (rank 1)" in said
        )
