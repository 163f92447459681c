"""On CUDA the verbs do what they do on the CPU, and checkpoints move between the two bit for bit."""

import json
import subprocess

import pytest
import torch

from megascratch.checkpoint import load, save
from megascratch.commands import main
from megascratch.training.state import TrainState
from tests.support.layout_runs import config_of
from tests.support.pretrain_runs import ENVIRONMENT, ROOT, command, curve, losses, mock, saved
from tests.support.small_models import save_model
from tests.support.trainers import build_trainer, load_and_train, train_and_save, train_steps

pytestmark = pytest.mark.gpu
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1}
PRECISIONS = [{}, {"fp64": False}, {"fp64": False, "bf16": True}]
SMALL = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --vocab-size 61 --seq-length 16 "
    "--steps 2 --device cuda"
).split()


def curve_of(folder) -> list[float]:
    return [number for row in losses(folder) for number in (row["loss"], row["grad_norm"])]


def run(words: list[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(words), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("precision", PRECISIONS, ids=["fp64", "fp32", "bf16"])
@pytest.mark.parametrize(("here", "there"), [("cpu", "cuda"), ("cuda", "cpu")])
def test_a_checkpoint_moves_between_the_devices_bit_for_bit(here, there, precision, tmp_path):
    writer, reader = (
        build_trainer(config_of(**DROPOUT, **precision, device=device)) for device in (here, there)
    )
    state = TrainState()
    train_steps(writer, state, 2)
    writer.save_scalars(state)
    save(
        str(tmp_path),
        state.step,
        writer.held(),
        {"train_state": state.to_dict()},
        writer.mesh.world,
    )
    reader.restore(
        TrainState.from_dict(load(str(tmp_path), reader.held(), reader.mesh.control)["train_state"])
    )
    for written, read in zip(writer.held(), reader.held(), strict=True):
        assert written.name == read.name and read.tensor.device.type == there
        assert torch.equal(written.tensor.cpu(), read.tensor.cpu()), written.name
    assert (
        reader.scale == writer.scale
        and reader.data_parallel.scalars() == writer.data_parallel.scalars()
    )


@pytest.mark.parametrize(
    "way", [{}, {"optimizer_cpu_offload": True}], ids=["on the device", "offloaded"]
)
@pytest.mark.parametrize("precision", PRECISIONS, ids=["fp64", "fp32", "bf16"])
def test_on_cuda_a_new_trainer_goes_on_to_the_last_bit(precision, way, tmp_path):
    config = config_of(**DROPOUT, **precision, **way, device="cuda")
    told, tensors = train_and_save(config, str(tmp_path))
    told_again, tensors_again = load_and_train(config, str(tmp_path / "step_00000002"))
    assert told == told_again and all(
        torch.equal(a, b) for a, b in zip(tensors, tensors_again, strict=True)
    )


@pytest.mark.parametrize("precision", [{}, {"bf16": True}], ids=["fp32", "bf16"])
def test_pretrain_saves_beside_training_and_goes_on_to_the_last_bit(precision, tmp_path):
    on_cuda = {"device": "cuda", "save_interval": 1, **precision}
    assert main(mock(tmp_path / "whole", **on_cuda)) == 0
    assert main(mock(tmp_path / "parts", **on_cuda, train_iters=3)) == 0
    assert main(mock(tmp_path / "parts", **on_cuda, load=tmp_path / "parts" / "checkpoints")) == 0
    assert main([*mock(tmp_path / "waits", **on_cuda), "--no-async-save"]) == 0
    for other in ("parts", "waits"):
        assert curve(tmp_path / other) == curve(tmp_path / "whole")
        assert all(
            saved(tmp_path / other, step) == saved(tmp_path / "whole", step) for step in range(1, 7)
        )
    assert main(["checkpoint", "verify", str(tmp_path / "whole" / "checkpoints")]) == 0


def test_pretrain_tells_the_cpus_losses_and_goes_on_there(tmp_path):
    assert main(mock(tmp_path / "cpu")) == 0
    assert main(mock(tmp_path / "cuda", device="cuda")) == 0
    assert main(mock(tmp_path / "both", device="cuda", train_iters=3)) == 0
    assert main(mock(tmp_path / "both", load=tmp_path / "both" / "checkpoints")) == 0
    for folder in ("cuda", "both"):
        assert curve_of(tmp_path / folder) == pytest.approx(curve_of(tmp_path / "cpu"), rel=1e-4)


def test_a_schedule_is_traced_on_cuda(tmp_path, capsys):
    assert main(mock(tmp_path, device="cuda", trace_schedule=True, global_batch_size=8)) == 0
    spans = json.loads((tmp_path / "schedule_step_5.json").read_text())
    assert "schedule of step 5" in capsys.readouterr().out and spans
    assert (tmp_path / "schedule_step_5.svg").stat().st_size > 1000 and (
        tmp_path / "schedule_step_5.csv"
    ).exists()


def test_evaluate_and_generate_say_what_they_say_on_the_cpu(tmp_path, capsys):
    save_model(tmp_path / "run")
    heldout = tmp_path / "heldout.jsonl"
    heldout.write_text(
        "".join(
            json.dumps({"text": text}) + "\n" for text in ("import os\n", "ä", "print(1)\n" * 30)
        )
    )
    nats, texts = [], []
    for device in ("cpu", "cuda"):
        where, out = (
            ["--load", str(tmp_path / "run"), "--device", device],
            tmp_path / f"{device}.json",
        )
        assert main(["evaluate", *where, "--input", str(heldout), "--output-json", str(out)]) == 0
        nats.append(json.loads(out.read_text())["heldout_nats"])
        capsys.readouterr()
        prompts = ["--prompt", "ab", "--prompt", "import"]
        assert main(["generate", *where, *prompts, "--max-new-tokens", "12", "--seed", "3"]) == 0
        texts.append(capsys.readouterr().out)
    assert nats[1] == pytest.approx(nats[0], rel=1e-9) and texts[0] == texts[1]


@pytest.mark.parametrize("precision", ["fp64", "fp32", "bf16"])
def test_verify_proves_micro_batches_on_one_device(precision, capsys):
    assert main(["verify", *SMALL, "--global-batch-size", "4", "--precision", precision]) == 0
    assert "1 of 1 layouts compute the same model" in capsys.readouterr().out


def test_verify_proves_layouts_whose_ranks_share_a_device(capsys):
    words = ["--distributed-backend", "gloo", "--max-world", "4", "--random", "8", "--seed", "3"]
    assert main(["verify", *SMALL, *words]) == 0
    assert "8 of 8 layouts compute the same model" in capsys.readouterr().out


def test_more_ranks_than_devices_are_refused_in_one_sentence(tmp_path, capsys):
    ranks = torch.cuda.device_count() + 1
    assert main(["verify", *SMALL, "--data-parallel-size", str(ranks)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert (
        f"needs a device per rank, {ranks} for these layouts" in said
        and "--distributed-backend gloo" in said
    )
    done = run(
        mock(tmp_path, device="cuda", global_batch_size=ranks) + ["--nproc-per-node", str(ranks)]
    )
    assert done.returncode == 2 and "needs a CUDA device of its own" in done.stderr
    assert "Traceback" not in done.stderr


def test_started_ranks_train_on_cuda_alone_and_sharing_it(tmp_path):
    """Forked from a process that has torch loaded, as CUDA allows only before it is first used."""
    assert main(mock(tmp_path / "cpu")) == 0
    two = {"tensor_model_parallel_size": 2, "distributed_backend": "gloo", "trace_schedule": True}
    for name, ranks, more in (("one", 1, {}), ("two", 2, two)):
        words = mock(tmp_path / name, device="cuda", **more)
        done = run([*words, "--nproc-per-node", str(ranks), "--max-restarts", "1"])
        assert done.returncode == 0, done.stderr
        assert curve_of(tmp_path / name) == pytest.approx(curve_of(tmp_path / "cpu"), rel=1e-4)
