"""What each flag of a script of Megatron-LM means is told without running the script."""

import json

import pytest

from megascratch.commands import main
from megascratch.config.megatron.scripts import flags_of_script

SCRIPT = """#!/bin/bash
set -e
CHECKPOINT=${1:-"checkpoints/mine"}
mkdir -p "$(dirname "$CHECKPOINT")"
touch made
NUM_NODES=2
DISTRIBUTED=(--nproc_per_node 8 --nnodes $NUM_NODES)
MODEL=(
    --num-layers $((2 * 16)) # a comment
    --disable-bias-linear
)
if [[ "$NUM_NODES" == "2" ]]; then
    MODEL+=("--split '99,1,0'")
fi
torchrun ${DISTRIBUTED[@]} pretrain_gpt.py ${MODEL[@]} --save "$CHECKPOINT"
"""
WORDS = ["--num-layers", "32", "--disable-bias-linear", "--split", "'99,1,0'", "--save"]


@pytest.mark.parametrize(
    "arguments, save", [((), "checkpoints/mine"), (("ck/b",), "ck/b")], ids=["alone", "argument"]
)
def test_a_script_is_read_with_its_variables_and_conditions_and_does_nothing(
    tmp_path, monkeypatch, arguments, save
):
    monkeypatch.chdir(tmp_path)
    script = tmp_path / "train.sh"
    script.write_text(SCRIPT)
    assert flags_of_script(script, arguments) == [*WORDS, save]
    assert [path.name for path in tmp_path.iterdir()] == ["train.sh"]


def test_a_script_can_neither_run_programs_nor_write(tmp_path):
    """What a restricted shell forbids is not done, and the flags behind it are found."""
    script = tmp_path / "train.sh"
    written = tmp_path / "written"
    script.write_text(
        f"/bin/touch {written}\necho x > {written}\nPATH=/bin:/usr/bin\ncd /\n"
        "torchrun pretrain_gpt.py --num-layers 2\n"
    )
    assert flags_of_script(script) == ["--num-layers", "2"]
    assert not written.exists()


@pytest.mark.parametrize(
    "started",
    [
        "torchrun --nproc-per-node 8 pretrain_gpt.py",
        "python -m torch.distributed.run --nproc-per-node 8 pretrain_gpt.py",
        "srun -l python -u pretrain_gpt.py",
        "uv run nsys profile -o report python pretrain_gpt.py",
        "python -m pretrain_gpt",
        "python -c 'import torch'; python pretrain_gpt.py",
        "env A=1 python pretrain_gpt.py",
    ],
)
def test_the_flags_are_found_behind_every_way_to_start_a_job(tmp_path, started):
    script = tmp_path / "train.sh"
    script.write_text(f"{started} --num-layers ${{LAYERS:-2}} --moe-layer-freq [0]*3+[1]*5")
    assert flags_of_script(script) == ["--num-layers", "2", "--moe-layer-freq", "[0]*3+[1]*5"]
    assert flags_of_script(script, environment={"LAYERS": "4"})[1] == "4"


def test_the_flags_of_a_job_that_a_script_submits_are_found(tmp_path):
    """The job is the input of sbatch, and has the training as a text for another shell."""
    script = tmp_path / "submit.sh"
    script.write_text(
        'FLAGS=(--num-layers 2)\nJOB="cd /somewhere; git status; python pretrain_gpt.py ${FLAGS[@]}"\n'
        'sbatch <<EOF\n#!/bin/bash\nsrun --mpi=pmix bash -x -c "${JOB}" 2>&1 | tee \\${ID}.log\nEOF\n'
    )
    assert flags_of_script(script) == ["--num-layers", "2"]


def test_the_model_args_of_a_yaml_recipe_are_flags(tmp_path):
    recipe = tmp_path / "model_config.yaml"
    recipe.write_text(
        "ENV_VARS: {A: 1}\nMODEL_ARGS:\n  --num-layers: 2\n  --bf16: true\n  --fp16: false\n"
        "  --step-batch-size-schedule: '0:4 8:8'\n  --recompute-modules: '[mlp layernorm]'\n"
    )
    assert flags_of_script(recipe) == [
        *["--num-layers", "2", "--bf16", "--step-batch-size-schedule", "0:4", "8:8"],
        *["--recompute-modules", "mlp", "layernorm"],
    ]


def test_the_exit_code_says_whether_every_flag_is_understood(capsys):
    assert (
        main(["megatron-flags", "explain", "--num-layers", "2", "--transformer-impl", "local"]) == 0
    )
    assert "every flag is understood (2)" in capsys.readouterr().out
    assert main(["megatron-flags", "explain", "--json", "--num-experts", "8"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["understood"] is False
    assert said["flags"][0] == {
        "flag": "--num-experts 8",
        "kind": "feature",
        "meaning": "mixture of experts",
    }


@pytest.mark.parametrize(
    "words, says",
    [
        ([], "nothing to explain"),
        (["nowhere.sh"], "nowhere.sh cannot be read"),
        (["empty.sh"], "gives no flag to a launcher"),
        (["empty.yaml"], "has no MODEL_ARGS"),
    ],
)
def test_what_cannot_be_explained_is_refused(tmp_path, monkeypatch, capsys, words, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.sh").write_text("ls\n")
    (tmp_path / "empty.yaml").write_text("a: 1\n")
    assert main(["megatron-flags", "explain", *words]) == 2
    assert says in capsys.readouterr().err
