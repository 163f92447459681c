"""The recipes of a copy of Megatron-LM are found, counted by group, and what each lacks is named."""

import json
import os
from pathlib import Path

import pytest

from tools.megatron_recipes import CONFIGS, LAUNCH_SCRIPTS, TESTS, main, miniatures, recipes

REPOSITORY = os.environ.get("MEGATRON_LM", "")
NEEDS_REPOSITORY = pytest.mark.skipif(
    not REPOSITORY, reason="the environment variable MEGATRON_LM names no copy of Megatron-LM"
)
DENSE = """MODEL_ARGS:
  --num-layers: 4
  --hidden-size: 256
  --num-attention-heads: 4
  --seq-length: 512
  --micro-batch-size: 2
  --global-batch-size: 8
  --train-iters: 50
  --mock-data: true
  --tokenizer-type: NullTokenizer
  --vocab-size: 1000
  --transformer-impl: local
  --tensor-model-parallel-size: 2
"""
FILES = {
    f"{TESTS}/gpt/dense/model_config.yaml": DENSE,
    f"{TESTS}/gpt/same/model_config.yaml": DENSE.replace("512", "1024"),
    f"{TESTS}/gpt/served/model_config.yaml": "MODE: inference\n" + DENSE,
    f"{TESTS}/gpt/empty/model_config.yaml": "MODEL_ARGS:\n",
    f"{TESTS}/moe/experts/model_config.yaml": DENSE + "  --num-experts: 8\n  --fancy: 1\n",
    f"{CONFIGS}/family/small.sh": 'MODEL_ARGS=" --num-layers 4 --export-as x"\n',
    f"{CONFIGS}/family/base.sh": "FAMILY=1\n",
    LAUNCH_SCRIPTS[0].path: "torchrun pretrain_gpt.py --num-layers 4 --save $1 --data-path $5\n",
}


@pytest.fixture
def copy(tmp_path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_recipes_are_counted_by_group_with_what_they_lack(copy, capsys):
    assert main(["--megatron-repo", str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "understood": 3,
        "recipes": 6,
        "groups": {"scripts": [1, 1], "model configs": [0, 1], "gpt": [2, 3], "moe": [0, 1]},
        "missing features": {"mixture of experts": 1},
        "unknown or refused": {
            "unknown flag --export-as": 1,
            f"{copy / TESTS}/gpt/empty/model_config.yaml has no MODEL_ARGS with a flag per line": 1,
            "unknown flag --fancy": 1,
        },
    }
    assert main(["--megatron-repo", str(copy), "--show", "experts"]) == 0
    said = capsys.readouterr().out
    assert "3 of 6 recipes are understood whole" in said and "['--num-experts 8']" in said


def test_recipes_with_the_same_miniature_are_trained_once(copy):
    found = [recipe for recipe in recipes(copy) if recipe.group == "gpt"]
    (small,) = miniatures(found)
    assert small.ranks == 2
    assert [recipe.name.split("/")[-2] for recipe in small.recipes] == ["dense", "same"]


def test_what_is_no_copy_of_megatron_is_refused(tmp_path, capsys):
    assert main(["--megatron-repo", str(tmp_path)]) == 2
    assert "not a copy of Megatron-LM: no tests/functional_tests" in capsys.readouterr().err


@NEEDS_REPOSITORY
def test_nearly_half_of_the_public_recipes_are_understood_whole():
    found = list(recipes(Path(REPOSITORY)))
    assert len(found) >= 256
    assert sum(recipe.found.whole for recipe in found) >= 115


@NEEDS_REPOSITORY
@pytest.mark.deep
def test_all_that_are_understood_train_in_miniature():
    assert main(["--megatron-repo", REPOSITORY, "--train"]) == 0
