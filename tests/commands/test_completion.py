"""The completion of the command line: what each place may hold, as bash itself fills it in, without torch."""

import argparse
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megascratch.commands import VERBS, main
from megascratch.commands.completion import SCRIPTS, candidates
from megascratch.config.fields import SETTINGS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("before", "current", "there", "not_there", "files"),
    [
        ("", "", ["pretrain", "help", "--version"], ["--lr"], False),
        ("help", "", ["pretrain"], [], False),
        ("nothing", "", [], ["pretrain"], False),
        ("data", "", ["inspect", "split"], ["--lr"], False),
        ("data split", "--", ["--fractions", "--help"], ["--samples", "--lr"], False),
        ("data split", "", [], ["--fractions"], True),
        ("data audit", "--", ["--steps", "--lr"], [], False),
        (
            "pretrain",
            "--",
            ["--lr", "--no-bf16", "--nproc-per-node", "--import"],
            ["--load x"],
            False,
        ),
        ("pretrain --lr-decay-style", "", ["cosine", "WSD"], ["--lr"], False),
        ("pretrain --config", "", ["llama3-8b", "nanogpt-char"], [], True),
        ("pretrain --config a.yaml", "", ["llama3-8b"], [], True),
        ("pretrain --load", "", [], ["--lr"], True),
        ("pretrain --num-layers", "", [], ["--lr"], False),
        ("pretrain --num-layers 2", "", ["--lr"], [], False),
        ("pretrain --bf16", "", ["--lr"], [], False),
        ("generate --device", "", ["cpu", "cuda"], ["--load"], False),
        ("generate --tokenizer-type", "", ["CharTokenizer"], [], False),
        ("init", "", ["gpt2-124m"], [], False),
        ("completion", "", ["bash", "zsh", "fish"], ["--words"], False),
    ],
)
def test_each_place_of_a_command_line_has_its_words(before, current, there, not_there, files):
    found = candidates(before.split(), current)
    words = set(found.words)
    assert set(there) <= words and not set(not_there) & words
    assert found.files == files


def test_every_command_flag_and_setting_can_be_completed():
    for verb in VERBS:
        name = f"megascratch.commands.parsers.{verb.replace('-', '_')}"
        parser = importlib.import_module(name).parser()
        for sub, below in (parser.commands() or {"": parser}).items():
            found = set(candidates([verb, *sub.split()], "-").words)
            flags = below.flags().items()
            shown = {flag for flag, action in flags if action.help != argparse.SUPPRESS}
            assert shown <= found, (verb, sub)
    settings = {
        "--import" if name == "imports" else f"--{name.replace('_', '-')}" for name in SETTINGS
    }
    assert settings <= set(candidates(["verify"], "--").words)


def bash_completes(words: list[str], folder: Path) -> set[str]:
    """What bash offers for the last word, by its own completion function."""
    script = "\n".join(
        [
            'megascratch() { "$PYTHON" -m megascratch "$@"; }',
            'eval "$(megascratch completion bash)"',
            'COMP_WORDS=(megascratch "$@")',
            "COMP_CWORD=$#",
            "_megascratch",
            'printf "%s\\n" "${COMPREPLY[@]}"',
        ]
    )
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)},
    )
    assert (done.returncode, done.stderr) == (0, "")
    return set(done.stdout.split())


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_fills_in_commands_flags_values_presets_and_files(tmp_path):
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "mine two.yaml").touch()
    assert bash_completes(["pre"], tmp_path) == {"pretrain", "preprocess"}
    assert bash_completes(["schedule", "sh"], tmp_path) == {"show"}
    assert "--lr-warmup-iters" in bash_completes(["pretrain", "--lr-w"], tmp_path)
    assert bash_completes(["pretrain", "--lr-decay-style", "c"], tmp_path) == {"constant", "cosine"}
    assert bash_completes(["pretrain", "--config", "mi"], tmp_path) == {
        "mistral-7b",
        "mine.yaml",
        "mine",
        "two.yaml",
    }


@pytest.mark.parametrize("shell", SCRIPTS)
def test_the_script_of_each_shell_is_valid_and_asks_for_the_words(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    assert "completion --words" in text
    if shutil.which(shell) is not None:
        script = tmp_path / "script"
        script.write_text(text)
        subprocess.run([shell, "-n", str(script)], check=True)


def test_the_answer_of_the_script_loads_no_library():
    code = (
        "import sys; from megascratch.commands import main;"
        "main('completion --words pretrain --lr'.split());"
        "print({'torch', 'numpy', 'tokenizers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[0] == "words" and "--lr-decay-style" in done.stdout
    assert (done.stdout.splitlines()[-1], done.stderr) == ("set()", "")
