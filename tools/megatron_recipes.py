"""Reads the training recipes of a copy of Megatron-LM, and says which of them are understood whole.

    python -m tools.megatron_recipes --megatron-repo PATH [--train] [--json] [--show NAME]

A recipe is a launch script of its examples, a model config of its post-training examples, or the MODEL_ARGS of a
functional test that trains. Nothing of it is copied or changed. With --train, every recipe that is understood whole is
scaled down and trained for two steps on the CPU.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from megascratch.config.errors import UserError
from megascratch.config.megatron.reading import Understanding, verdict
from megascratch.config.megatron.scripts import flags_of_script

ROOT = Path(__file__).parent.parent
TESTS = "tests/functional_tests/test_cases"
CONFIGS = "examples/post_training/modelopt/conf"


class LaunchScript(NamedTuple):
    """A script that starts a training, and what it is given."""

    path: str
    arguments: str = ""
    variable: str = ""
    """Of its environment: NAME=value."""


LLAMA = "examples/llama/train_llama3_8b_h100_fp8.sh"
MIXTRAL = "examples/mixtral/train_mixtral_8x7b_distributed.sh"
FSDP = "examples/megatron_fsdp/train_llama3_8b_fsdp_h100_fp8.sh"
DEEPSEEK = "examples/megatron_fsdp/sbatch_mfsdp_deepseek_v3.sh"
LAUNCH_SCRIPTS = (
    LaunchScript(
        "examples/gpt3/train_gpt3_175b_distributed.sh", "ck tb vocab.json merges.txt data"
    ),
    LaunchScript(LLAMA),
    LaunchScript(LLAMA, "ck tb tokenizer data"),
    LaunchScript(MIXTRAL, "ck tokenizer.model data"),
    LaunchScript(MIXTRAL, "ck tokenizer.model data", "WANDB_API_KEY=key"),
    LaunchScript("examples/gptoss/02_train.sh", "--checkpoint-path ."),
    LaunchScript("examples/mamba/train.sh", "data tokenizer.model"),
    LaunchScript(FSDP, variable="USE_MEGATRON_FSDP=0"),
    LaunchScript(FSDP, variable="USE_MEGATRON_FSDP=1"),
    LaunchScript(DEEPSEEK, variable="USE_MEGATRON_FSDP=0"),
    LaunchScript(DEEPSEEK, variable="USE_MEGATRON_FSDP=1"),
)


class Recipe(NamedTuple):
    """A recipe and what is understood of it."""

    group: str
    name: str
    words: list[str]
    found: Understanding


def recipes(repository: Path) -> Iterator[Recipe]:
    """All training recipes. Raises: UserError if the folder is not a copy of Megatron-LM."""
    if not (repository / TESTS).is_dir():
        raise UserError(f"--megatron-repo {repository}: not a copy of Megatron-LM: no {TESTS}")
    for script in LAUNCH_SCRIPTS:
        variables = dict([script.variable.split("=")]) if script.variable else {}
        words = flags_of_script(repository / script.path, script.arguments.split(), variables)
        name = " ".join(filter(None, (script.variable, script.path, script.arguments)))
        yield Recipe("scripts", name, words, verdict(words))
    for path in sorted((repository / CONFIGS).glob("*/*.sh")):
        try:
            words = flags_of_script(path)
        except UserError:
            continue  # it only sets variables of another script
        yield Recipe("model configs", _name(path, repository), words, verdict(words))
    for group in ("gpt", "moe", "mixtral"):
        for path in sorted((repository / TESTS / group).glob("*/model_config.yaml")):
            content = yaml.load(path.read_text(), yaml.CSafeLoader)
            if "MODE" not in content and "MODEL_ARGS" in content:
                yield _test_recipe(group, path, repository)


def _test_recipe(group: str, path: Path, repository: Path) -> Recipe:
    name = _name(path, repository)
    try:
        words = flags_of_script(path)
    except UserError as error:
        return Recipe(group, name, [], Understanding(False, {}, [str(error)], []))
    return Recipe(group, name, words, verdict(words))


def _name(path: Path, repository: Path) -> str:
    return str(path.relative_to(repository))


def trained(recipe: Recipe, folder: Path) -> tuple[int, str]:
    """Exit code and last words of two steps of the recipe in miniature."""
    command = [sys.executable, str(ROOT / "tools/pretrain_gpt.py"), *recipe.words, "--scale-down"]
    command += [
        "--train-iters",
        "2",
        "--output-dir",
        str(folder / "run"),
        "--save",
        str(folder / "save"),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()[-300:]


def table(found: list[Recipe]) -> dict[str, Any]:
    """The counts by group, and what is missing, most frequent first."""
    counts = {}
    for group in dict.fromkeys(recipe.group for recipe in found):
        of_group = [recipe for recipe in found if recipe.group == group]
        counts[group] = [sum(recipe.found.whole for recipe in of_group), len(of_group)]
    features = Counter(feature for recipe in found for feature in recipe.found.missing)
    others = Counter(
        line for recipe in found for line in (*recipe.found.unknown, *recipe.found.refused)
    )
    whole = sum(recipe.found.whole for recipe in found)
    return {
        "understood": whole,
        "recipes": len(found),
        "groups": counts,
        "missing features": dict(features.most_common()),
        "unknown or refused": dict(others.most_common()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megatron-repo", type=Path, required=True)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--show", metavar="NAME", help="print what is missing in recipes whose name contains NAME"
    )
    options = parser.parse_args()
    try:
        found = list(recipes(options.megatron_repo))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = table(found)
    failed = []
    if options.train:
        for recipe in found:
            if not recipe.found.whole:
                continue
            with tempfile.TemporaryDirectory() as folder:
                code, said = trained(recipe, Path(folder))
            if code != 0:
                failed.append(recipe.name)
                print(f"{recipe.name}: exit code {code}: {said}")
        counts["trained"] = counts["understood"] - len(failed)
    if options.json:
        print(json.dumps(counts, indent=1))
    else:
        for name, value in counts.items():
            print(f"{name}: {value}")
    for recipe in found:
        if options.show and options.show in recipe.name:
            print(recipe.name, recipe.found._asdict())
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
