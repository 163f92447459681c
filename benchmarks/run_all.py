"""Runs the benchmarks that docs/benchmarks.md names, and writes what they print into its sections: `make bench`.

    python benchmarks/run_all.py                       every section
    python benchmarks/run_all.py pipeline reads        only bench_pipeline and bench_reads

A section of the page has its command and its figures between two comments:

    <!-- bench: python benchmarks/bench_pipeline.py --rounds 9 -->
    ... figures, replaced by a run that succeeds ...
    <!-- end -->

A benchmark that fails (a peer is not installed, there is no GPU) leaves its figures, with their date, as they are.
"""

import argparse
import datetime
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
SECTION = re.compile(r"<!-- bench: (?P<command>[^>]*?) -->\n.*?<!-- end -->", re.DOTALL)

RunCommand = Callable[[str], "str | None"]
"""A command -> what it printed; None if it failed."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="parts of the names of benchmarks (default: all)")
    options = parser.parse_args()
    failed: list[str] = []

    def measure(command: str) -> str | None:
        print(f"$ {command}", flush=True)
        printed = run(command)
        if printed is None:
            failed.append(command)
        else:
            print(printed, flush=True)
        return printed

    text = PAGE.read_text(encoding="utf-8")
    for command in chosen(text, options.names):
        text = fill(text, command, measure, where_and_when())
        PAGE.write_text(text, encoding="utf-8")  # at once: what has been measured is not lost
    for command in failed:
        print(f"failed, its figures stay as they were: {command}", file=sys.stderr)
    return 1 if failed else 0


def chosen(page: str, names: list[str]) -> list[str]:
    """The commands of the page whose text contains one of `names`; all without names."""
    commands = [section["command"] for section in SECTION.finditer(page)]
    if not names:
        return commands
    return [command for command in commands if any(name in command for name in names)]


def fill(page: str, command: str, measure: RunCommand, context: str) -> str:
    """The page with the figures of one command replaced, or as it was where the command fails."""
    printed = measure(command)
    if printed is None:
        return page
    figures = "\n".join(line.rstrip() for line in printed.strip("\n").splitlines())
    body = f"<!-- bench: {command} -->\n`{command}`, {context}:\n\n```text\n{figures}\n```\n<!-- end -->"
    return SECTION.sub(lambda found: body if found["command"] == command else found[0], page)


def run(command: str) -> str | None:
    """What a command prints to its standard output; its errors go to ours."""
    words = shlex.split(command)
    words[0] = sys.executable if words[0] == "python" else words[0]
    environment = os.environ | {"COLUMNS": "110"}
    done = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=environment)
    return done.stdout if done.returncode == 0 else None


def where_and_when() -> str:
    """Date, commit, machine and versions, in words."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    commit = described.stdout.strip() or "not known"
    processor = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = re.search(r"model name\s*: (.*)", cpuinfo.read_text(encoding="utf-8"))
        processor = model[1] if model else processor
    return (
        f"{datetime.date.today().isoformat()}, commit {commit}, {os.cpu_count()} cores of {processor}, "
        f"Python {platform.python_version()}, PyTorch {version('torch')}"
    )


if __name__ == "__main__":
    sys.exit(main())
