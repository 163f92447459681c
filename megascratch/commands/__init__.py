"""The `megascratch` command line: runs one command, prints errors that the user can fix, and returns the exit code.

Each command has two files. `parsers/dry_run.py` has the flags of `dry-run`. `dry_run.py` has `main(options) -> int` and
is imported when the flags are valid, so that help and the refusal of a wrong flag need no torch.
"""

import argparse
import importlib
import os
import sys
import time
from collections.abc import Sequence

from megascratch.commands.parsers.base import Parser
from megascratch.config.errors import RanksDiffer, SettingError, UserError
from megascratch.config.exit_codes import BAD_INPUT, INTERRUPTED, own_process
from megascratch.config.hints import most_similar
from megascratch.config.printable import plain_warnings, printable
from megascratch.config.verbosity import QUIET, VERBOSE, detail, is_verbose, verbosity
from megascratch.runtime import faults
from megascratch.runtime.launch_environment import launch_environment
from megascratch.runtime.torchrun_error import tell_torchrun
from megascratch.runtime.versions import DOCUMENTATION, versions

GROUPS = {
    "data": {
        "tokenizer": "train, compare, convert and check tokenizers; encode text",
        "preprocess": "turn text (JSONL, plain, Parquet) into .bin/.idx files",
        "conversations": "turn JSONL conversations into files with a loss mask",
        "curate": "drop low-quality, duplicate and contaminated texts",
        "data": "inspect, validate, merge and split .bin/.idx files",
    },
    "train": {
        "init": "write the config of a known model, to train or edit",
        "pretrain": "train a model from .bin/.idx files, on any layout",
        "doctor": "check machines and settings before a run",
        "dry-run": "memory, traffic and operations of a rank, without ranks",
        "verify": "check that a layout computes the same model",
    },
    "use": {
        "generate": "continue prompts with a checkpoint",
        "evaluate": "loss and bits per byte of a checkpoint on held-out text",
        "checkpoint": "inspect, verify, compare, reshard, average and prune",
    },
    "inspect": {
        "schedule": "draw, check, compare and simulate pipeline schedules",
        "megatron-flags": "explain a script of Megatron-LM",
        "completion": "print the completion of these commands for a shell",
    },
}
"""What a command is for -> the commands with a summary."""

VERBS = {verb: summary for group in GROUPS.values() for verb, summary in group.items()}

EXAMPLE = """\
first steps:
  megascratch preprocess --input input.txt --output-prefix shakespeare \\
      --train-tokenizer char --tokenizer-model chars.json
  megascratch pretrain --config nanogpt-char
  megascratch generate --load runs/nanogpt-char --max-new-tokens 500

megascratch COMMAND --help   the flags of a command, with examples
megascratch --version        versions of megascratch, Python and the libraries
"""

PIPE_CLOSED = 141  # 128 + number of SIGPIPE, as in a shell


def usage() -> str:
    """The commands by what they are for, the first steps, and where the documentation is."""
    lines = ["usage: megascratch COMMAND [--flags]", ""]
    for group, verbs in GROUPS.items():
        lines.append(f"{group}:")
        lines += [f"  {verb:<15}{summary}" for verb, summary in verbs.items()]
        lines.append("")
    return "\n".join([*lines, f"{EXAMPLE}documentation: {DOCUMENTATION}"])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. The exit code is the command's own, 2 for bad input, 130 for Ctrl-C, 141 for a closed pipe."""
    if argv is None:
        own_process()
    try:
        code = _answer(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a closed pipe raises here, not after main
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # otherwise Python's last flush prints an error
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED


def _answer(argv: list[str]) -> int:
    try:
        words, choice = split_verbosity(argv)
    except UserError as error:
        _complain("", error)
        return BAD_INPUT
    if words and words[0] == "help":
        words = [*words[1:], "--help"]
    if words and words[0] in ("-h", "--help"):
        print(usage())
        return 0
    if words and words[0] in ("-V", "--version", "version"):
        print("\n".join(f"{name} {value}" for name, value in versions().items()))
        return 0
    if not words:
        print(f"megascratch: error: no command given\n\n{usage()}", file=sys.stderr)
        return BAD_INPUT
    if words[0] not in VERBS:
        near = most_similar(words[0], VERBS)
        hint = f" - did you mean {near}?" if near else ""
        problem = printable(f"unknown command {words[0]}{hint}")
        print(
            f"megascratch: error: {problem}\nmegascratch --help lists the commands", file=sys.stderr
        )
        return BAD_INPUT
    with verbosity(choice):
        return _run(words[0], words[1:])


def split_verbosity(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """The words without --quiet and --verbose, which any command accepts anywhere before `--`, and what they choose.

    Raises: UserError if both are given.
    """
    flags = {"-q": QUIET, "--quiet": QUIET, "-v": VERBOSE, "--verbose": VERBOSE}
    end = argv.index("--") if "--" in argv else len(argv)
    words = [word for word in argv[:end] if word not in flags]
    chosen = {flags[word] for word in argv[:end] if word in flags}
    if len(chosen) > 1:
        raise UserError("--quiet and --verbose exclude each other: remove one of them")
    return [*words, *argv[end:]], next(iter(chosen), None)


def _run(verb: str, argv: list[str]) -> int:
    plain_warnings()
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _join_torchrun(verb)
        launch_environment().check()
        faults.check()
        return call(verb, argv)
    except UserError as error:
        _complain(verb, error)
        return BAD_INPUT


def call(verb: str, argv: Sequence[str]) -> int:
    """Runs one command and returns its exit code. Raises: UserError for an error that the user can fix."""
    began = time.monotonic()
    name = verb.replace("-", "_")
    options = _options(name, argv)
    if options is None:
        return 0
    if is_verbose() and "RANK" not in os.environ:
        detail(", ".join(f"{library} {value}" for library, value in versions().items()))
    work = importlib.import_module(f"{__name__}.{name}").main
    detail(f"{verb}: flags read and libraries loaded after {time.monotonic() - began:.1f} s")
    code: int = work(options)
    detail(f"{verb}: exit code {code} after {time.monotonic() - began:.1f} s")
    return code


def _options(name: str, argv: Sequence[str]) -> argparse.Namespace | None:
    """What the flags of a command say; None: they asked for the help, which is printed."""
    parser: Parser = importlib.import_module(f"{__name__}.parsers.{name}").parser()
    try:
        return parser.read(argv)
    except SystemExit:
        return None


def _join_torchrun(verb: str) -> None:
    """Ends this rank with torchrun's agent. Called before other imports: the agent may be killed at any time."""
    from megascratch.runtime.processes import end_with_parent
    from megascratch.supervision.torchrun_watcher import join_torchrun

    if verb == "pretrain":
        join_torchrun()
    else:
        end_with_parent(os.getppid())


def _complain(verb: str, error: UserError) -> None:
    """Prints one line per problem. If all ranks find the same invalid setting, only one of them prints it."""
    rank = os.environ.get("RANK", "0")  # a text: it may be the variable that is wrong
    shared = isinstance(error, SettingError)
    named = "" if rank == "0" or shared else f"rank {rank}: "
    head = f"megascratch {verb}: {printable(named)}error: " if verb else "megascratch: error: "
    text = str(error) or "(no reason given)"
    problems = [printable(line) for line in text.split("\n")]
    if len(problems) > 1 and not isinstance(error, RanksDiffer):
        problems.insert(0, f"{len(problems)} problems")
    body = "\n  ".join(problems)
    tell_torchrun(head + body)
    if not shared or "RANK" not in os.environ:
        print(head + body, file=sys.stderr)
        return
    # only ranks of a distributed run need it
    from megascratch.supervision.print_once import print_once

    print_once(head + body)
