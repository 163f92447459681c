"""The laws of the command line: one line per mistake on stderr, exit code 2, never a traceback."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from megascratch.commands import VERBS, main
from megascratch.commands.parsers.base import Parser
from megascratch.config.errors import SettingError, UserError
from megascratch.config.verbosity import VARIABLE, detail, note, verbosity

ROOT = Path(__file__).resolve().parents[2]


def install_verb(monkeypatch, run) -> None:
    """Make `megascratch generate` call `run(options)`, with all its words in `options.settings`."""
    verb = ModuleType("megascratch.commands.generate")
    verb.main = run
    flags = ModuleType("megascratch.commands.parsers.generate")
    flags.parser = lambda: Parser("megascratch generate", "", settings_help=lambda: "")
    monkeypatch.setitem(sys.modules, "megascratch.commands.generate", verb)
    monkeypatch.setitem(sys.modules, "megascratch.commands.parsers.generate", flags)


def raising(error):
    def run(argv):
        raise error

    return run


@pytest.mark.parametrize("flag", ["--help", "-h", "help"])
def test_help_lists_every_verb(capsys, flag):
    assert main([flag]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb}" in out and summary in out for verb, summary in VERBS.items())


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["pretrian"], "unknown command pretrian - did you mean pretrain?"),
        (["xyzzy"], "unknown command xyzzy\n"),
        ([], "no command given"),
        (["--lr", "1"], "unknown command --lr\n"),
        (["--versio"], "unknown command --versio\n"),
    ],
)
def test_a_word_that_is_no_verb_is_refused_with_the_nearest(capsys, argv, complaint):
    assert main(argv) == 2
    said = capsys.readouterr()
    assert complaint in said.err and said.out == ""


def test_a_verb_gets_its_words_and_gives_the_exit_code(monkeypatch):
    seen = []
    install_verb(monkeypatch, lambda options: seen.append(options.settings) or 7)
    assert main(["generate", "--top-k", "3"]) == 7
    assert seen == [["--top-k", "3"]]


def test_what_a_user_can_mend_is_one_line_and_code_2(monkeypatch, capsys):
    install_verb(monkeypatch, raising(UserError("no checkpoint in x: give --load")))
    assert main(["generate"]) == 2
    assert (
        capsys.readouterr().err == "megascratch generate: error: no checkpoint in x: give --load\n"
    )


def test_several_problems_are_listed_under_one_another(monkeypatch, capsys):
    install_verb(monkeypatch, raising(SettingError("first\nsecond")))
    assert main(["generate"]) == 2
    assert capsys.readouterr().err == "megascratch generate: error: 2 problems\n  first\n  second\n"


@pytest.mark.parametrize(
    ("error", "rank", "said"),
    [
        (SettingError("x"), "3", ""),
        (SettingError("x"), "0", "megascratch generate: error: x\n"),
        (UserError("x"), "3", "megascratch generate: rank 3: error: x\n"),
    ],
)
def test_a_broken_setting_is_said_by_the_first_rank_alone_and_anything_else_by_its_rank(
    monkeypatch, capsys, error, rank, said
):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "4")
    install_verb(monkeypatch, raising(error))
    assert main(["generate"]) == 2
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("flag", ["--version", "-V", "version"])
def test_the_version_is_printed_without_a_library(flag):
    code = (
        f"import sys; from megascratch.commands import main; code = main(['{flag}']);"
        "print(code, {'torch', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr, lines[-1]) == (0, "", "0 set()")
    assert lines[0] == f"megascratch {metadata.version('megascratch')}"
    assert f"torch {metadata.version('torch')}" in lines
    assert any(line.startswith("python 3.") for line in lines)


def test_help_names_the_groups_the_first_steps_and_the_documentation(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for group in ("data:", "train:", "use:", "inspect:", "first steps:"):
        assert group in lines
    assert lines[-1].startswith("documentation: https://")
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], None),
        (["-q"], "quiet"),
        (["--quiet"], "quiet"),
        (["--lr", "1", "-v"], "verbose"),
        (["--", "-q"], None),
    ],
)
def test_quiet_and_verbose_are_told_to_what_runs_inside_and_forgotten(monkeypatch, words, told):
    seen = []

    def run(options):
        seen.append((os.environ.get(VARIABLE), options.settings))
        return 0

    install_verb(monkeypatch, run)
    assert main(["generate", *words]) == 0
    rest = [word for word in words if word not in ("-v", "--quiet") and words != ["-q"]]
    assert seen == [(told, rest)]
    assert VARIABLE not in os.environ


def test_quiet_and_verbose_exclude_each_other(capsys):
    assert main(["generate", "-q", "-v"]) == 2
    assert "exclude each other" in capsys.readouterr().err


def test_a_quiet_command_notes_nothing_and_a_verbose_one_tells_details(monkeypatch, capsys):
    def run(options):
        note("a notice")
        detail("a detail")
        return 0

    install_verb(monkeypatch, run)
    found = {}
    for flag in ("--log", "-q", "-v"):
        main(["generate", flag])
        found[flag] = capsys.readouterr().err
    assert found["--log"] == "a notice\n" and found["-q"] == ""
    assert "a notice\nmegascratch: a detail\n" in found["-v"]
    assert "exit code 0" in found["-v"] and "torch 2" in found["-v"]


def test_a_detail_names_its_rank(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "3")
    with verbosity("verbose"):
        detail("loaded")
    assert capsys.readouterr().err == "megascratch: rank 3: loaded\n"


def test_torchrun_ends_its_report_with_the_reason(monkeypatch, tmp_path):
    """Read by torch itself."""
    file = tmp_path / "error.json"
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    install_verb(monkeypatch, raising(UserError("no checkpoint in x: give --load")))
    assert main(["generate"]) == 2
    failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file=str(file))
    report = ChildFailedError("megascratch", {0: failure}).format_msg()
    lines = [line.strip() for line in report.split("Root Cause")[1].splitlines()]
    assert lines[-2] == "traceback : megascratch generate: error: no checkpoint in x: give --load"


def test_ctrl_c_is_130(monkeypatch):
    install_verb(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["generate"]) == 130


def test_a_bug_keeps_its_traceback(monkeypatch):
    install_verb(monkeypatch, raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["generate"])


def test_every_verb_is_a_file():
    folder = ROOT / "megascratch" / "commands"
    for verb in VERBS:
        name = f"{verb.replace('-', '_')}.py"
        assert (folder / name).is_file() and (folder / "parsers" / name).is_file(), verb


def test_the_module_runs_as_a_program():
    program = [sys.executable, "-m", "megascratch", "pretrian"]
    done = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "megascratch: error: unknown command pretrian - did you mean pretrain?\n"
    )


@pytest.mark.parametrize("argv", [["--help"], ["schedule", "compare"]])
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_left_gives_no_traceback(argv, lines):
    code = (
        f"import sys, types; v = types.ModuleType('v'); v.main = lambda argv: print('line\\n' * {lines}) or 0;"
        "sys.modules['megascratch.commands.schedule'] = v;"
        f"from megascratch.commands import main; sys.exit(main({argv}))"
    )
    reader, writer = os.pipe()
    os.close(reader)
    buffered = os.environ | {"PYTHONUNBUFFERED": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=buffered,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
