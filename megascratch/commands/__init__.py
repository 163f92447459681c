"""The `megascratch` command line: runs one command, prints errors that the user can fix, and returns the exit code.

Each command is a file in this folder (`dry_run.py` for `dry-run`) with `main(argv) -> int`. It is imported only when it
is run, so that `megascratch --help` needs neither torch nor any other library.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from megascratch.config.errors import RanksDiffer, SettingError, UserError
from megascratch.config.exit_codes import BAD_INPUT, INTERRUPTED, own_process
from megascratch.config.printable import plain_warnings, printable
from megascratch.runtime import faults
from megascratch.runtime.launch_environment import launch_environment

VERBS = {
    "init": "write the config of a known model, to train or edit",
    "doctor": "check machines and settings before a run",
    "dry-run": "memory, traffic and operations of any rank of any layout, without the ranks",
    "pretrain": "train a model from .bin/.idx files, on any layout",
    "curate": "drop low-quality, duplicate and contaminated texts from JSONL",
    "preprocess": "turn text (JSONL, plain, Parquet) into .bin/.idx files",
    "data": "inspect, validate, merge and split .bin/.idx files; audit what training reads",
    "conversations": "turn JSONL conversations into token files with a loss mask",
    "tokenizer": "train, compare, convert and check tokenizers; encode and decode text",
    "checkpoint": "inspect, verify, compare, reshard, average and prune checkpoints",
    "evaluate": "measure a checkpoint's loss and bits per byte on held-out text",
    "generate": "continue prompts with a checkpoint",
    "schedule": "draw, check, compare and simulate pipeline schedules",
    "verify": "check with your own config that a layout computes the same model",
}

USAGE = "\n".join(
    [
        "usage: megascratch COMMAND [--flags]",
        "",
        *(f"  {verb:<14}{summary}" for verb, summary in VERBS.items()),
        "",
        "megascratch COMMAND --help lists the flags of a command.",
    ]
)

PIPE_CLOSED = 141  # 128 + number of SIGPIPE, as in a shell


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


def _answer(words: list[str]) -> int:
    if words and words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0
    if not words or words[0] not in VERBS:
        print(f"megascratch: error: {printable(_unknown(words))}\n{USAGE}", file=sys.stderr)
        return BAD_INPUT
    return _run(words[0], words[1:])


def _unknown(words: list[str]) -> str:
    if not words:
        return "no command given"
    near = difflib.get_close_matches(words[0], VERBS, n=1)
    if near:
        return f"unknown command {words[0]} - did you mean {near[0]}?"
    return f"unknown command {words[0]}"


def _run(verb: str, argv: list[str]) -> int:
    plain_warnings()
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _join_torchrun(verb)
        launch_environment().check()
        faults.check()
        code: int = importlib.import_module(f"{__name__}.{verb.replace('-', '_')}").main(argv)
        return code
    except UserError as error:
        _complain(verb, error)
        return BAD_INPUT


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
    head = f"megascratch {verb}: {printable(named)}error: "
    text = str(error) or "(no reason given)"
    problems = [printable(line) for line in text.split("\n")]
    if len(problems) > 1 and not isinstance(error, RanksDiffer):
        problems.insert(0, f"{len(problems)} problems")
    body = "\n  ".join(problems)
    if not shared or "RANK" not in os.environ:
        print(head + body, file=sys.stderr)
        return
    # only ranks of a distributed run need it
    from megascratch.supervision.print_once import print_once

    print_once(head + body)
