"""The help of every command and sub-command: short, uniform, with valid examples, and without torch. Wrong flags are
refused in one form."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megascratch.commands import VERBS, main
from megascratch.commands.parsers import tokenizer as tokenizer_flags
from megascratch.commands.parsers.base import Parser
from megascratch.config.fields import SECTIONS, SETTINGS
from megascratch.config.flags import read_flags
from megascratch.config.help import COMMON
from megascratch.curation.curate import Settings
from megascratch.tokenizer.registry import SUFFIXES
from megascratch.tokenizer.splits import ENCODINGS, SPLITS
from megascratch.tokenizer.vocabulary import END_OF_TEXT

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "scipy", "matplotlib", "pyarrow", "sentencepiece", "tokenizers", "gigatoken")
LONGEST = {"megascratch pretrain": 112, "megascratch preprocess": 85}
"""Lines of a help; 70 for all others."""


def parser_of(verb: str) -> Parser:
    return importlib.import_module(
        f"megascratch.commands.parsers.{verb.replace('-', '_')}"
    ).parser()


def every_parser() -> dict[str, Parser]:
    """The parsers of all commands and sub-commands by their words."""
    found = {}
    for verb in VERBS:
        top = parser_of(verb)
        found[verb] = top
        for name, below in top.commands().items():
            found[f"{verb} {name}"] = below
    return found


PARSERS = every_parser()


@pytest.mark.parametrize("words", PARSERS)
def test_a_help_fits_a_terminal_and_ends_with_examples(words):
    help = PARSERS[words].format_help()
    lines = help.splitlines()
    assert lines[0].startswith(f"usage: megascratch {words}")
    assert [line for line in lines if len(line) > 80] == []
    assert len(lines) <= LONGEST.get(PARSERS[words].prog, 70)
    assert "\nexample" in help.split("\ngeneral:\n")[1]
    assert "None" not in help and help.count("==SUPPRESS==") == 0


@pytest.mark.parametrize("words", PARSERS)
def test_every_flag_says_what_it_is_for_and_each_default_once(words):
    for flag, action in PARSERS[words].flags().items():
        assert action.help, flag
        assert action.help.count("default") <= 1, flag


def test_a_flag_of_several_commands_has_one_placeholder():
    """One name, one meaning: only where a command really asks for something else the placeholder differs."""
    differ = {
        "--input": {"FILE", "PREFIX"},  # data merge reads corpora
        "--output": {"FILE", "DIR"},  # a checkpoint is a folder
        "--json": {None, "FILE"},
        "--steps": {"N", "FIRST:LAST"},  # of verify, of data audit
    }
    found: dict[str, set[str | None]] = {}
    for parser in PARSERS.values():
        for flag, action in parser.flags().items():
            found.setdefault(flag, set()).add(action.metavar)
    several = {flag: metavars for flag, metavars in found.items() if len(metavars) > 1}
    assert {
        flag: metavars for flag, metavars in several.items() if differ.get(flag) != metavars
    } == {}


@pytest.mark.parametrize("words", PARSERS)
def test_every_example_is_read_without_a_problem(words):
    examples = PARSERS[words].format_help().split("\nexample", 1)[1].split("\n", 1)[1]
    commands = examples.replace("\\\n", " ").splitlines()
    assert commands
    for command in commands:
        words_only = command.split(" > ")[0].split(" >> ")[0]
        verb, *rest = shlex.split(words_only.split("megascratch ", 1)[1])
        options, settings = parser_of(verb).parse_known_args(rest)
        takes_settings = hasattr(options, "parser") and options.parser.takes_settings
        assert takes_settings or settings == []
        if verb != "megatron-flags":
            assert read_flags(settings).problems == []


def test_no_help_loads_torch_or_a_library_of_data():
    code = f"""
import contextlib, io, json, sys
from megascratch.commands import main
loaded = {{}}
for words in {[words.split() for words in PARSERS]}:
    with contextlib.redirect_stdout(io.StringIO()):
        code = main([*words, "--help"])
    loaded[" ".join(words)] = [code, sorted({HEAVY} & sys.modules.keys())]
print(json.dumps(loaded))
""".replace(f"{HEAVY} &", f"set({HEAVY}) &")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert {words for words, found in json.loads(done.stdout).items() if found != [0, []]} == set()


@pytest.mark.parametrize(
    "words", ["help generate", "generate --help", "generate -h", "help data split"]
)
def test_help_can_be_asked_for_in_each_usual_way(capsys, words):
    assert main(words.split()) == 0
    said = capsys.readouterr()
    assert said.out.startswith("usage: megascratch ") and said.err == ""


def test_the_short_help_of_pretrain_has_the_settings_changed_first_and_the_long_one_all(capsys):
    main(["pretrain", "--help"])
    short = capsys.readouterr().out
    main(["pretrain", "--help-all"])
    long = capsys.readouterr().out
    main(["pretrain", "--help-all", "guard"])
    guard = capsys.readouterr().out
    for name, setting in SETTINGS.items():
        flag = "--import" if name == "imports" else f"--{name.replace('_', '-')}"
        assert f"  {flag}" in long
        in_short = re.search(rf"^  {flag}\b(?!-)", short, flags=re.MULTILINE) is not None
        assert in_short == (name in COMMON or name == "imports"), name
        assert (f"\n  {flag}" in guard) == (setting.section == "guard")
    assert "The shape of the Transformer." in long
    for section in SECTIONS:
        assert f"more: --help-all {section})" in short or section == "guard"


def test_names_that_are_repeated_to_need_no_library_are_those_of_the_tables():
    assert tuple(SPLITS) == tokenizer_flags.SPLITS
    assert tuple(ENCODINGS) == tokenizer_flags.ENCODINGS
    assert tuple(SUFFIXES) == tokenizer_flags.TRAINED
    assert tokenizer_flags.END_OF_TEXT == END_OF_TEXT
    flags = parser_of("curate").flags()
    for name, default in Settings()._asdict().items():
        action = flags.get(f"--{name.replace('_', '-')}")
        if action is not None and "(default: " in str(action.help):
            assert f"(default: {default}" in action.help, name


REFUSED = [
    ("generate", "--load DIR is missing: folder of a run"),
    ("generate --load", "--load needs a value: folder of a run"),
    ("generate --load x --top-k two", "--top-k (two) must be a whole number"),
    ("generate --load x --top-p much", "--top-p (much) must be a number"),
    ("generate --load x --batch-size 0", "--batch-size (0) must be at least 1"),
    ("generate --load x --batch-size 1.5", "--batch-size (1.5) must be a whole number"),
    ("generate --load x --device gpu", "--device (gpu) must be one of cpu, cuda"),
    ("generate --load x --gredy", "unknown flag --gredy - did you mean --greedy?"),
    ("generate --load x y", "y: put the flag in front of each value"),
    ("generate --load nowhere", "--load nowhere: no checkpoint: nowhere is not a folder"),
    ("evaluate --load nowhere --input README.md", "--load nowhere: no checkpoint"),
    ("evaluate --load . --input nowhere", "nowhere cannot be read: No such file"),
    ("generate --load . --prompts-file nowhere", "--prompts-file nowhere cannot be read"),
    ("verify --steps 0", "--steps (0) must be above 0"),
    ("verify --random 3", "--random (3) needs --max-world"),
    ("verify --json nowhere/x.json", "there is no folder nowhere"),
    ("verify --lr x", "--lr"),
    ("dry-run", "--world N is missing: the number of ranks of the run"),
    ("dry-run --world 0", "--world (0) must be at least 1"),
    ("dry-run --world 4 --device-kind tpu", "--device-kind (tpu) must be one of cpu, cuda"),
    ("dry-run --world 4 --picture x.jpg", "--picture (x.jpg) must end with .svg, .png, .pdf"),
    ("dry-run --world 4 --all-stages --rank 1", "--all-stages chooses the ranks itself"),
    ("generate --load x --greedy=1", "--greedy does not accept a value (given: 1)"),
    ("generate --loa x --load x", "unknown flag --loa - did you mean --load?"),
    ("data", "no command given: use one of inspect, validate"),
    ("data inspekt x", "unknown command inspekt - did you mean inspect?"),
    ("data inspect", "PREFIX is missing: a corpus"),
    ("data inspect x --lr 1", "unknown flag --lr"),
    ("data split x --output-prefix y", "one of --fractions, --documents is missing"),
    (
        "data split x --output-prefix y --fractions 1 --documents 1",
        "--documents and --fractions exclude each other: remove one of them",
    ),
    ("checkpoint prune x --keep-last-n-checkpoints 0", "(0) must be at least 1"),
    ("schedule show 1f1b --stages 0", "--stages (0) must be at least 1"),
    ("tokenizer train --input x --output y --split gpt3", "--split (gpt3) must be one of gpt2"),
    ("verify --steps x", "--steps (x) must be a whole number"),
    ("doctor --timeout x", "--timeout (x) must be a number"),
    ("doctor --timeout 0", "--timeout (0) must be above 0"),
    ("pretrain --nproc-per-node x", "--nproc-per-node (x) must be a whole number"),
    ("pretrain --nproc-per-node 0", "--nproc-per-node (0) must be at least 1"),
    ("pretrain --help-all modl", "--help-all (modl) must be one of"),
    ("preprocess --input x --workers 0", "--workers (0) must be at least 1"),
]
"""A command line -> what is said of it."""


@pytest.mark.parametrize(("words", "complaint"), REFUSED)
def test_a_wrong_flag_is_refused_in_one_form(capsys, words, complaint):
    assert main(words.split()) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"megascratch {words.split()[0]}: error: ")
    assert complaint in said.err
    assert len(said.err.splitlines()) <= 6


def test_no_refusal_of_a_flag_loads_torch():
    """`verify --lr x` is refused by the work of the command, which has torch."""
    lines = [words for words, _ in REFUSED if words != "verify --lr x"]
    code = (
        "import sys; from megascratch.commands import main;"
        f"codes = [main(words.split()) for words in {lines}];"
        "print(set(codes), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "{2} False\n"


def test_a_run_with_a_similar_name_is_proposed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine" / "checkpoints" / "step_00000001").mkdir(parents=True)
    (tmp_path / "runs" / "mint").mkdir()
    assert main(["generate", "--load", "runs/mime"]) == 2
    assert capsys.readouterr().err.endswith("did you mean runs/mine?\n")
