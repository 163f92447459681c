"""The command line in, an exit code out: finds the verb, runs its module, and says in one line what a user can mend.

A verb is a file of this folder with `main(argv) -> int`; it is imported only when asked for, so that
`megascratch --help` needs neither torch nor any other library.
"""

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from megascratch.config.errors import RanksDiffer, SettingError, UserError
from megascratch.config.exit_codes import BAD_INPUT, INTERRUPTED, own_process
from megascratch.config.plain_warnings import plain_warnings
from megascratch.config.printable import printable
from megascratch.runtime import faults

VERBS = {
    "doctor": "check machines and settings before a run",
    "pretrain": "train a model from .bin/.idx files, on any layout",
    "curate": "drop bad, doubled and contaminated texts from JSONL",
    "preprocess": "turn text (JSONL, plain, Parquet) into .bin/.idx files",
    "data": "inspect, validate, merge, split .bin/.idx files; audit what training reads",
    "conversations": "turn JSONL conversations into token files with a loss mask",
    "tokenizer": "train, compare, convert and prove tokenizers; encode and decode text",
    "checkpoint": "inspect, verify, compare, reshard, average, prune checkpoints",
    "evaluate": "measure a checkpoint's loss and bits per byte on held-out text",
    "generate": "continue prompts with a checkpoint",
    "schedule": "draw, prove, compare and play pipeline schedules",
    "verify": "prove on your own config that a layout computes the same model",
}

USAGE = "\n".join(
    [
        "usage: megascratch VERB [--flags]",
        "",
        *(f"  {verb:<14}{summary}" for verb, summary in VERBS.items()),
        "",
        "megascratch VERB --help tells the verb's flags.",
    ]
)

NOBODY_READS = 141  # 128 + signal number, as shells have it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is the verb's own, 2 for bad input, 130 for ctrl-c, 141 when the pipe is closed."""
    if argv is None:
        own_process()
    try:
        code = _answer(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # a closed pipe shows here, not after main
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python's own last flush complains
        return NOBODY_READS


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
        return "which verb?"
    near = difflib.get_close_matches(words[0], VERBS, n=1)
    return f"unknown verb {words[0]}" + (f" - did you mean {near[0]}?" if near else "")


def _run(verb: str, argv: list[str]) -> int:
    plain_warnings()
    try:
        if "TORCHELASTIC_RUN_ID" in os.environ:
            _join_torchrun(verb)
        faults.check()
        code: int = importlib.import_module(f"{__name__}.{verb}").main(argv)
        return code
    except UserError as error:
        _complain(verb, error)
        return BAD_INPUT


def _join_torchrun(verb: str) -> None:
    """Before any library is loaded: torchrun's agent may be killed at any time."""
    from megascratch.runtime.processes import end_with_parent
    from megascratch.supervision.torchrun_watcher import join_torchrun

    if verb == "pretrain":
        join_torchrun()
    else:
        end_with_parent(os.getppid())


def _complain(verb: str, error: UserError) -> None:
    """One line per problem; ranks that all find the same broken setting say it once."""
    rank = os.environ.get("RANK", "0")
    shared = isinstance(error, SettingError)
    head = f"megascratch {verb}: error: " if rank == "0" or shared else f"megascratch {verb}: rank {rank}: error: "
    problems = [printable(line) for line in str(error).split("\n")] if str(error) else ["(no reason given)"]
    if isinstance(error, RanksDiffer):
        problems = ["\n  ".join(problems)]
    body = problems[0] if len(problems) == 1 else "\n  ".join([f"{len(problems)} problems", *problems])
    if not shared or "RANK" not in os.environ:
        print(head + body, file=sys.stderr)
        return
    from megascratch.supervision.print_once import print_once  # only ranks need it

    print_once(head + body)
