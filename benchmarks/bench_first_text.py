"""From one text file to generated text: the three commands of examples/shakespeare/run.sh, timed, in an empty folder.

python benchmarks/bench_first_text.py [--text input.txt]

Without --text the text is prose that every machine has: the docstrings of the standard library, as many characters as
the collected plays of Shakespeare in nanoGPT's recipe.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "shakespeare" / "run.sh"
CHARACTERS = 1_115_394
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib2to3"}


def docstrings() -> Iterator[str]:
    """The docstrings of the standard library, file by file in the order of their names."""
    library = Path(sysconfig.get_path("stdlib"))
    for path in sorted(library.rglob("*.py")):
        if LEFT_OUT & set(path.relative_to(library).parts):
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(path.read_bytes())
        except SyntaxError:
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node)
                if text and text.isascii():
                    yield text


def commands() -> list[str]:
    """The commands of the script, in order."""
    lines = SCRIPT.read_text(encoding="utf-8").replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("megascratch ")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path)
    text = parser.parse_args().text
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.setdefault("PYTHONPATH", str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "input.txt")
        if text is None:
            source.write_text("\n\n".join(docstrings())[:CHARACTERS], encoding="utf-8")
        else:
            shutil.copy(text, source)
        print(f"{source.stat().st_size:,} bytes of text")
        total = 0.0
        for command in commands():
            began = time.perf_counter()
            done = subprocess.run(
                command, shell=True, cwd=folder, env=environment, capture_output=True, text=True
            )
            seconds = time.perf_counter() - began
            total += seconds
            if done.returncode:
                sys.exit(f"{command}\n{done.stderr}")
            print(f"{seconds:7.1f} s  {command[:100]}")
        summary = json.loads(Path(folder, "runs/nanogpt-char/summary.json").read_text())
        print(f"{total:7.1f} s  all")
        print(f"validation loss {summary['valid_loss']:.4f} after {summary['steps']:,} steps")
        print(f"{len(done.stdout):,} characters printed")


if __name__ == "__main__":
    main()
