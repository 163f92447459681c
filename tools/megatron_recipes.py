"""Reads the training recipes of a copy of Megatron-LM, and says which of them are understood whole.

    python -m tools.megatron_recipes --megatron-repo PATH [--train [--jobs N]] [--json] [--show NAME]

A recipe is a launch script of its examples, a model config of its post-training examples, or the MODEL_ARGS of a
functional test that trains. Nothing of it is copied or changed. With --train, every recipe that is understood whole is
scaled down and trained for three steps on the CPU, equal miniatures once. If one of them fails, the exit code is 1.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.layout import Layout
from megascratch.config.load import read_config
from megascratch.config.megatron.reading import Understanding, verdict
from megascratch.config.megatron.scripts import flags_of_script
from megascratch.verification.scale_down import scaled_down

ROOT = Path(__file__).parent.parent
MOST_RANKS = 8
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


class Miniature(NamedTuple):
    """What `--scale-down` makes of one or more recipes."""

    ranks: int
    recipes: list[Recipe]


def recipes(repository: Path) -> Iterator[Recipe]:
    """All training recipes. Raises: UserError if the folder is not a copy of Megatron-LM."""
    if not (repository / TESTS).is_dir():
        raise UserError(f"--megatron-repo {repository}: not a copy of Megatron-LM: no {TESTS}")
    for script in LAUNCH_SCRIPTS:
        path = repository / script.path
        if path.exists():
            name = " ".join(filter(None, (script.variable, script.path, script.arguments)))
            yield _recipe("scripts", name, path, script.arguments.split(), script.variable)
    for path in sorted((repository / CONFIGS).glob("*/*.sh")):
        if "MODEL_ARGS=" in path.read_text(encoding="utf-8"):  # else it sets variables of another
            yield _recipe("model configs", _name(path, repository), path)
    for group in ("gpt", "moe", "mixtral"):
        for path in sorted((repository / TESTS / group).glob("*/model_config.yaml")):
            content = yaml.load(path.read_text(encoding="utf-8"), yaml.CSafeLoader)
            if "MODE" not in content and "MODEL_ARGS" in content:
                yield _recipe(group, _name(path, repository), path)


def _recipe(
    group: str, name: str, path: Path, arguments: Sequence[str] = (), variable: str = ""
) -> Recipe:
    variables = dict([variable.split("=")]) if variable else {}
    try:
        words = flags_of_script(path, arguments, variables)
    except UserError as error:
        return Recipe(group, name, [], Understanding(False, {}, [str(error)], []))
    return Recipe(group, name, words, verdict(words))


def _name(path: Path, repository: Path) -> str:
    return str(path.relative_to(repository))


def miniatures(found: list[Recipe]) -> list[Miniature]:
    """The miniatures of all recipes that are understood whole, on the ranks of one replica each, at most eight. Those
    with few ranks come first."""
    equal: dict[str, Miniature] = {}
    for recipe in found:
        if not recipe.found.whole:
            continue
        loaded = read_config(recipe.words)
        ranks = min(MOST_RANKS, Layout.of_values(flat(loaded.config)).world)
        small = scaled_down(loaded, ranks).config
        equal.setdefault(f"{ranks} {small}", Miniature(ranks, [])).recipes.append(recipe)
    return sorted(equal.values(), key=lambda miniature: miniature.ranks)


def trained(miniature: Miniature) -> tuple[int, str]:
    """Exit code and last words of its run."""
    script = str(ROOT / "tools/pretrain_gpt.py")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, script, *miniature.recipes[0].words, "--scale-down"]
        command += ["--nproc-per-node", str(miniature.ranks), "--output-dir", f"{folder}/run"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.returncode, done.stderr.strip()[-400:]


def train_all(found: list[Recipe], jobs: int) -> tuple[dict[str, int], list[str]]:
    """Trains every miniature. Returns: counts, and one text for each that failed."""
    small = miniatures(found)
    failed = []
    recipes_of_failed = 0
    with ThreadPoolExecutor(jobs) as pool:
        runs = zip(small, pool.map(trained, small), strict=True)
        for number, (miniature, (code, said)) in enumerate(runs, 1):
            print(f"{number} of {len(small)}: exit code {code}", file=sys.stderr, flush=True)
            if code != 0:
                recipes_of_failed += len(miniature.recipes)
                name = miniature.recipes[0].name
                failed.append(f"{name} on {miniature.ranks} ranks: exit code {code}: {said}")
    understood = sum(len(miniature.recipes) for miniature in small)
    counts = {"trained": understood - recipes_of_failed, "different miniatures": len(small)}
    return counts, failed


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


def report(counts: dict[str, Any]) -> str:
    """The counts in a few lines."""
    groups = [f"{group} {whole} of {all_}" for group, (whole, all_) in counts["groups"].items()]
    understood = f"{counts['understood']} of {counts['recipes']} recipes are understood whole"
    lines = [f"{understood}: {', '.join(groups)}"]
    for title in ("missing features", "unknown or refused"):
        lines.append(f"{title}, with the recipes that need them:")
        lines += [f"  {number:3}  {name}" for name, number in counts[title].items()]
    if "trained" in counts:
        trained_of = f"trained: {counts['trained']} of {counts['understood']}"
        lines.append(f"{trained_of}, {counts['different miniatures']} different miniatures")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megatron-repo", type=Path, required=True)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--show", metavar="NAME", help="print what is missing in recipes whose name contains NAME"
    )
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs {options.jobs}: give 1 or more")
    try:
        found = list(recipes(options.megatron_repo))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    counts = table(found)
    failed: list[str] = []
    if options.train:
        trained_counts, failed = train_all(found, options.jobs)
        counts |= trained_counts
    print(json.dumps(counts, indent=1) if options.json else report(counts))
    for recipe in found:
        if options.show and options.show in recipe.name:
            print(recipe.name, recipe.found._asdict())
    for text in failed:
        print(text, file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
