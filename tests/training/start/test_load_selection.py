"""What a run takes from which checkpoint, and that one which must be there is missed before anything starts."""

import json

import pytest
import torch

from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
from megascratch.commands import main
from megascratch.config.megatron.reading import only_megatrons
from megascratch.parallel.shard import Box
from tests.support.pretrain_runs import curve, mock, refused, rows


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four steps with the checkpoints 2 and 4."""
    folder = tmp_path_factory.mktemp("run")
    assert main(mock(folder, train_iters=4, save_interval=2)) == 0
    return folder


def weights(folder, step: int) -> dict[str, torch.Tensor]:
    with OpenCheckpoint(folder / "checkpoints" / f"step_{step:08}") as opened:
        found = {}
        for name, entry in opened.manifest.tensors.items():
            found[name] = opened.box(name, Box((0,) * len(entry.shape), entry.shape))
        return found


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.write_text("x"), "it is not a folder"),
        (lambda path: (path / "step_00000001").mkdir(parents=True), "only damaged ones"),
        (
            lambda path: (path.mkdir(), (path / "latest_checkpointed_iteration.txt").touch()),
            "this is a checkpoint of Megatron-LM",
        ),
    ],
)
def test_what_is_there_and_cannot_be_loaded_is_not_missing(tmp_path, capsys, make, told):
    make(tmp_path / "load")
    words = mock(tmp_path / "on", load=tmp_path / "load")
    refused(capsys, [*words, "--no-exit-on-missing-checkpoint"], told)
    assert not (tmp_path / "on/checkpoints").exists()


def test_a_step_that_is_named_must_be_there(run, tmp_path, capsys):
    words = mock(tmp_path / "on", load=run, train_iters=4)
    refused(capsys, [*words, "--ckpt-step", "3"], "has no step of this number: use 2 or 4")
    assert main([*words, "--ckpt-step", "2"]) == 0
    assert curve(tmp_path / "on") == curve(run)[2:]


@pytest.mark.parametrize("by", ["finetune", "pretrained"])
def test_a_new_run_begins_with_the_weights_alone(run, tmp_path, by, capsys):
    """At a rate of 0 the weights stay those of the checkpoint; step, optimizer and seed are those of a new run."""
    words = mock(tmp_path, train_iters=1, lr=0, min_lr=0, seed=7, lr_warmup_iters=0)
    if by == "finetune":
        words += ["--load", str(run), "--finetune"]
    else:
        words += ["--load", str(tmp_path / "checkpoints"), "--pretrained-checkpoint", str(run)]
    assert main(words) == 0
    assert "a new run begins with the weights of" in capsys.readouterr().out
    before = weights(run, 4)
    after = weights(tmp_path, 1)
    assert before.keys() == after.keys()
    kept = [name for name in before if name.startswith("param.")]
    assert kept and all(torch.equal(before[name], after[name]) for name in kept)
    assert not any(torch.equal(before[name], after[name]) for name in before if name not in kept)
    assert [row["consumed_samples"] for row in rows(tmp_path) if "grad_norm" in row] == [4]


def test_new_runs_of_another_shape_are_refused(run, tmp_path, capsys):
    words = mock(tmp_path / "on", load=run, num_layers=3, finetune=True, seed=3)
    refused(capsys, words, "num-layers was 2 and is now 3: the model has different tensors")


def test_the_history_of_the_optimizer_can_be_left_out_and_position_and_weights_stay(run, tmp_path):
    """The moments after one step are those of its gradient alone: (1 - beta) times it, so m^2 / (1 - beta1)^2 is
    v / (1 - beta2)."""
    words = mock(tmp_path, train_iters=5, load=run, clip_grad=0)
    assert main([*words, "--no-load-optim"]) == 0
    (row,) = [row for row in rows(tmp_path) if "grad_norm" in row]
    assert (row["step"], row["consumed_samples"]) == (5, 20)
    tensors = weights(tmp_path, 5)
    for name in tensors:
        if name.startswith("optim.exp_avg."):
            second = tensors[name.replace("exp_avg", "exp_avg_sq")]
            torch.testing.assert_close(
                (tensors[name] / 0.1) ** 2, second / 0.001, rtol=1e-4, atol=0
            )
    manifest = json.loads((tmp_path / "checkpoints/step_00000005/manifest.json").read_text())
    assert manifest["body"]["state"]["train_state"]["optimizer"]["steps"] == 1


def test_without_the_optimizer_a_checkpoint_is_for_new_runs(run, tmp_path, capsys):
    words = mock(tmp_path / "small", train_iters=4, load=run, finetune=True)
    assert main([*words, "--no-save-optim"]) == 0
    names = list(weights(tmp_path / "small", 4))
    assert names and all(name.startswith("param.") for name in names)
    capsys.readouterr()
    words = mock(tmp_path / "on", train_iters=5, load=tmp_path / "small")
    refused(capsys, words, "saved without the state of the optimizer: give --no-load-optim")
    assert main([*words, "--no-load-optim"]) == 0


def test_flags_that_both_tools_spell_alike_make_no_line_megatrons():
    assert only_megatrons(["--no-load-optim", "--no-save-optim", "--no-load-rng"]) == [
        "--no-load-rng"
    ]


def test_shape_and_tokenizer_of_the_checkpoint_replace_what_is_given(run, tmp_path, capsys):
    words = mock(tmp_path / "on", load=run, train_iters=5, num_layers=3, hidden_size=64)
    refused(capsys, words, "num-layers was 2 and is now 3")
    assert main([*words, "--use-checkpoint-args"]) == 0
    said = capsys.readouterr()
    told = "step_00000004 replaces --num-layers 2 (given: 3), --hidden-size 32 (given: 64)"
    assert f"use-checkpoint-args: {told}" in said.out + said.err
    (tmp_path / "damaged/step_00000001").mkdir(parents=True)
    (tmp_path / "damaged/step_00000001/manifest.json").write_text('{"body": {"state": []}}')
    words = mock(tmp_path / "no", load=tmp_path / "damaged", use_checkpoint_args=True)
    refused(capsys, words, "the settings of", "step_00000001 cannot be read")
