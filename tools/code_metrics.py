"""Measures how readable a Python package is: size, density, names, and how many files one training step crosses.

    python -m tools.code_metrics megascratch                      # a table
    python -m tools.code_metrics megascratch ../nanochat/nanochat # packages side by side
    python -m tools.code_metrics megascratch --json

The sources are parsed, never imported, so any package can be measured. See METRICS for what each row means.
"""

import argparse
import ast
import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tools.source_tree import FUNCTIONS, Package
from tools.step_walk import StepWalk

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SMALL_FILE = 60  # lines
# A step, and the model's forward: the step calls it through nn.Module, which no reader of the source can follow.
STARTS = ("training/loop.py:_step", "model/chunk.py:forward")
# An ordinary step neither saves nor prints nor recovers.
LEFT_OUT = (
    "checkpoint",
    "config",
    "training/checkpointing.py",
    "training/health",
    "training/report.py",
    "training/schedule_trace.py",
)

METRICS = {
    "files": "Python files",
    "lines": "lines of these files",
    "code_lines": "lines with code: no blank lines, comments or strings that stand alone",
    "functions": "functions and methods, nested ones too",
    "function_median": "lines of a function, docstring included: median",
    "function_p90": "lines of a function: 90th percentile (nearest rank)",
    "function_max": "lines of the longest function",
    "nodes_per_line": "statements and expressions of the syntax tree, per code line",
    "comprehensions_per_1k": "comprehensions and generator expressions, per 1,000 code lines",
    "tuple_assignments_per_1k": "assignments of the form a, b = x, y, per 1,000 code lines",
    "helpers_used_once": "private functions and methods whose name is read exactly once in the package",
    "class_names_used_twice": "names that several top-level classes have",
    "function_names_in_several_files": "names of public top-level functions of several files",
    "formula_openings": "module docstrings whose first sentence has the form 'X in, Y out'",
    "small_files": "files of 1 to 59 lines (empty ones do not count)",
    "readme_words": "words of the README.md beside the package (0: none)",
    "step_files": "files that one training step crosses (see StepWalk; empty without a starting function)",
    "step_lines": "lines of these files",
}


def measure(
    root: Path, starts: Sequence[str] = STARTS, left_out: Sequence[str] = LEFT_OUT
) -> dict[str, float | int | None]:
    """The rows of METRICS for the package in the folder `root`.

    Args:
        starts: FILE:FUNCTION where a training step begins, the files relative to `root`.
        left_out: files and folders into which the walk of a step does not go.
    """
    package = Package(root)
    lengths = [_length(function) for file in package.files for function in file.functions]
    code_lines = sum(file.code_lines for file in package.files)
    thousand = max(code_lines, 1) / 1000
    readme = root.resolve().parent / "README.md"
    step = StepWalk(package).files_from(starts, left_out)
    return {
        "files": len(package.files),
        "lines": sum(file.lines for file in package.files),
        "code_lines": code_lines,
        "functions": len(lengths),
        "function_median": statistics.median(lengths) if lengths else 0,
        "function_p90": _percentile(lengths, 0.9),
        "function_max": max(lengths, default=0),
        "nodes_per_line": round(package.count(ast.stmt, ast.expr) / max(code_lines, 1), 2),
        "comprehensions_per_1k": round(package.count(*COMPREHENSIONS) / thousand, 1),
        "tuple_assignments_per_1k": round(sum(map(_assigns_tuple, package.nodes)) / thousand, 1),
        "helpers_used_once": len(helpers_used_once(package)),
        "class_names_used_twice": len(class_names_used_twice(package)),
        "function_names_in_several_files": len(function_names_in_several_files(package)),
        "formula_openings": len(formula_openings(package)),
        "small_files": sum(0 < file.lines < SMALL_FILE for file in package.files),
        "readme_words": len(readme.read_text(encoding="utf-8").split()) if readme.exists() else 0,
        "step_files": len(step) if step else None,
        "step_lines": sum(file.lines for file in step) if step else None,
    }


def helpers_used_once(package: Package) -> list[str]:
    """Private functions whose name is read exactly once: candidates for a place in their caller."""
    read: Counter[str] = Counter()
    for node in package.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            read[node.id] += 1
        elif isinstance(node, ast.Attribute):
            read[node.attr] += 1
    functions = [function.name for file in package.files for function in file.functions]
    return [
        name
        for name in functions
        if name.startswith("_") and not name.endswith("__") and read[name] == 1
    ]


def class_names_used_twice(package: Package) -> dict[str, list[str]]:
    """Class name -> the modules that define it, of names that several top-level classes have."""
    return _defined_more_than_once(package, ast.ClassDef)


def function_names_in_several_files(package: Package) -> dict[str, list[str]]:
    """Function name -> the modules that define it; `main` is left out."""
    found = _defined_more_than_once(package, *FUNCTIONS)
    return {
        name: modules
        for name, modules in found.items()
        if name != "main" and not name.startswith("_")
    }


def _defined_more_than_once(package: Package, *kinds: type[ast.AST]) -> dict[str, list[str]]:
    homes: dict[str, list[str]] = {}
    for file in package.files:
        for node in file.tree.body:
            if isinstance(node, kinds):
                modules = homes.setdefault(getattr(node, "name", ""), [])
                if file.module not in modules:
                    modules.append(file.module)
    return {name: modules for name, modules in homes.items() if len(modules) > 1}


def formula_openings(package: Package) -> list[str]:
    """Modules whose docstring opens with the formula 'X in, Y out'."""
    return [
        file.module
        for file in package.files
        if opens_with_formula(ast.get_docstring(file.tree) or "")
    ]


def opens_with_formula(docstring: str) -> bool:
    """True for 'Text in, tokens out.' and the like: 'in' and then 'out' as last words of clauses, in one sentence."""
    sentence = re.split(r"(?<=\.)\s", docstring.strip(), maxsplit=1)[0]
    return re.search(r"\bin\s*[,;:(].*\bout\s*([,;:.(]|$)", sentence, re.DOTALL) is not None


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def _percentile(values: list[int], part: float) -> int:
    if not values:
        return 0
    return sorted(values)[max(0, -(-len(values) * int(part * 100) // 100) - 1)]


def _assigns_tuple(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and isinstance(node.targets[0], ast.Tuple)
    )


# ---- printing --------------------------------------------------------------------------------------------------


def table(rows: dict[str, dict[str, float | int | None]]) -> str:
    """One line per metric, one column per package."""
    width = max(map(len, METRICS)) + 2
    columns = [max(len(name), 10) + 2 for name in rows]
    head = " " * width + "".join(name.rjust(size) for name, size in zip(rows, columns, strict=True))
    lines = [head]
    for metric in METRICS:
        cells = [
            _shown(values[metric]).rjust(size)
            for values, size in zip(rows.values(), columns, strict=True)
        ]
        lines.append(metric.ljust(width) + "".join(cells))
    return "\n".join(lines)


def _shown(value: float | int | None) -> str:
    return "-" if value is None else f"{value:,}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("packages", nargs="+", type=Path, metavar="FOLDER")
    parser.add_argument("--start", nargs="+", default=STARTS, metavar="FILE:FUNCTION")
    parser.add_argument("--leave-out", nargs="*", default=LEFT_OUT, metavar="PATH")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--names", action="store_true", help="also list what the counts count")
    options = parser.parse_args(argv)
    for folder in options.packages:
        if not folder.is_dir():
            parser.error(f"{folder} is not a folder")
    rows = {
        str(folder): measure(folder, options.start, options.leave_out)
        for folder in options.packages
    }
    print(json.dumps(rows, indent=2) if options.json else table(rows))
    if options.names:
        for folder in options.packages:
            package = Package(folder)
            print(f"\n{folder}")
            for found in (
                class_names_used_twice,
                function_names_in_several_files,
                formula_openings,
                helpers_used_once,
            ):
                print(f"{found.__name__}: {found(package)}")
            for file, caller in (
                StepWalk(package).files_from(options.start, options.leave_out).items()
            ):
                print(f"step: {file.path.relative_to(folder)} reached from {caller}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
