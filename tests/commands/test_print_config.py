"""`pretrain --print-config`: the whole config of a run that need not have data yet, for any number of ranks."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from megascratch.commands import main
from megascratch.config.load import load_config, read_config
from megascratch.training.start.settings import legal_settings

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "--mock-data --num-layers 2 --hidden-size 32 --num-attention-heads 2 --seq-length 16 --vocab-size 61 "
    "--train-iters 2 --device cpu --micro-batch-size 2 --eval-interval 0"
).split()

POSITIONS = ["--max-position-embeddings", "1024"]


def printed(capsys, *words: str) -> str:
    assert main(["pretrain", *words, "--print-config"]) == 0
    return capsys.readouterr().out


def test_what_is_printed_for_four_ranks_trains_on_one_and_is_legal_on_any_number(capsys, tmp_path):
    file = tmp_path / "printed.yaml"
    file.write_text(printed(capsys, *TINY, "--nproc-per-node", "4"))
    assert load_config(["--config", str(file)])[0] == load_config(TINY)[0]
    for world in (1, 2, 3, 8):
        config = legal_settings(read_config(["--config", str(file)]), world).config
        assert (config.parallel.data_parallel_size, config.training.global_batch_size) == (
            world,
            2 * world,
        )
    words = ["pretrain", "--config", str(file), "--output-dir", str(tmp_path / "run")]
    assert main(words) == 0
    assert (tmp_path / "run" / "checkpoints" / "step_00000002").is_dir()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        # fp32: weight, gradient and two moments are 16 bytes for each of 124,439,808 parameters
        (
            [
                *"--config gpt2-124m --no-bf16 --seq-length 64 --micro-batch-size 1".split(),
                *POSITIONS,
            ],
            "124,439,808 parameters; layout pp 1 x dp 1 x tp 1",
        ),
        (["--config", "llama3-8b", "--num-layers", "2"], "layout pp 1 x dp 1 x tp 8, world size 8"),
        ([*TINY, "--pipeline-model-parallel-size", "2"], "world size 2\n# rank 0 (stage 0): "),
        ([], "# parameters and memory are not known: the vocabulary is unknown"),
        (["--config", "nanogpt-char"], "are not known: chars.json"),
    ],
)
def test_parameters_and_memory_follow_the_settings_without_any_data(
    capsys, tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    text = printed(capsys, *words)
    assert said in text and list(tmp_path.iterdir()) == []
    comments = [line for line in text.splitlines() if line.startswith("# ")]
    assert text.splitlines()[-len(comments) :] == comments
    if "gpt2-124m" in words:
        gib = float(re.search(r"([\d.]+) GiB of cuda memory", text)[1])
        assert 16 * 124_439_808 / 2**30 < gib < 2.3


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--num-attention-heads", "7"], "hidden-size (768) must be divisible by"),
        (["--config", "llama3-8b", "--nproc-per-node", "4"], "world size (4)"),
        (
            ["--tensor-model-parallel-size", "0"],
            "tensor-model-parallel-size (0) must be at least 1",
        ),
        (["--nm-layers", "3"], "unknown flag --nm-layers"),
    ],
)
def test_settings_that_are_wrong_are_refused_and_nothing_is_printed(capsys, words, complaint):
    assert main(["pretrain", *words, "--print-config"]) == 2
    said = capsys.readouterr()
    assert complaint in said.err and said.out == ""


def test_settings_are_printed_before_torch_is_imported():
    """A refusal, and a config whose vocabulary is unknown, need no torch."""
    code = (
        "import sys; from megascratch.commands import main; main(['pretrain', '--print-config']);"
        "main(['pretrain', '--print-config', '--num-layers', '0']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("\nFalse\n"), done.stderr
