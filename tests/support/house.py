"""Finds the places of a Python package that break a rule of the house. Sources are parsed, never imported."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple


class Import(NamedTuple):
    """One imported module, with the place of the statement and whether it stands inside a function."""

    name: str
    place: str
    inside_function: bool


@dataclass(frozen=True)
class Module:
    """One source file: its dotted name, its file and its syntax tree."""

    name: str
    file: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.file.name == "__init__.py"

    def at(self, node: ast.stmt) -> str:
        return f"{self.file}:{node.lineno}"


@dataclass(frozen=True)
class House:
    """All modules under one package folder."""

    root: Path

    @cached_property
    def modules(self) -> dict[str, Module]:
        found = {}
        for file in sorted(self.root.rglob("*.py")):
            parts = file.relative_to(self.root.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = Module(name, file, ast.parse(file.read_text(encoding="utf-8")))
        return found

    def imports(self, module: Module) -> list[Import]:
        """Everything the module imports; `from a import b` is a.b where that is a module, else a."""
        return self._imports[module.name]

    @cached_property
    def _imports(self) -> dict[str, list[Import]]:
        return {name: self._imports_of(module) for name, module in self.modules.items()}

    def _imports_of(self, module: Module) -> list[Import]:
        inside = {
            node
            for function in ast.walk(module.tree)
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for node in ast.walk(function)
        }
        return [
            Import(name, module.at(node), node in inside)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for name in self._names(module, node)
        ]

    def _names(self, module: Module, node: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
            return
        base = node.module or ""
        if node.level:
            package = module.name.split(".") if module.is_package else module.name.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
        for alias in node.names:
            full = f"{base}.{alias.name}"
            yield full if full in self.modules else base

    def reached(self, start: str) -> dict[str, Import | None]:
        """Every name that importing `start` loads, outer packages included -> the import that brought it."""
        came_by: dict[str, Import | None] = {start: None}
        waiting = [start]
        while waiting:
            name = waiting.pop()
            steps: list[tuple[str, Import | None]] = [
                (outer, came_by[name]) for outer in _outer(name)
            ]
            if name in self.modules:
                steps += [(found.name, found) for found in self.imports(self.modules[name])]
            for target, by in steps:
                if target not in came_by:
                    came_by[target] = by
                    waiting.append(target)
        return came_by


def _outer(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def imports_that_climb(
    house: House, floors: dict[str, int], sideways: set[tuple[str, str]]
) -> list[str]:
    """Imports of a room that is not on a lower floor (the module's own room excepted)."""
    broken = []
    for module in house.modules.values():
        here = room_of(module.name, house.root.name)
        for found in house.imports(module):
            there = room_of(found.name, house.root.name)
            if there == here or there not in floors or (here, there) in sideways:
                continue
            if floors[there] >= floors[here]:
                broken.append(
                    f"{found.place}: {here} (floor {floors[here]}) imports {there} (floor {floors[there]})"
                )
    return broken


def room_of(name: str, package: str) -> str:
    """megascratch.layers.linear -> layers; tools.x -> tools; the package's own files are the room ''."""
    parts = name.split(".")
    return parts[0] if parts[0] != package else (parts[1] if len(parts) > 1 else "")


def rooms_without_floor(house: House, floors: dict[str, int]) -> list[str]:
    return [name for name in house.modules if room_of(name, house.root.name) not in floors]


def import_cycles(house: House) -> list[str]:
    """One line per module that reaches itself through explicit imports."""
    inner = {
        name: {found.name for found in house.imports(module)} & set(house.modules)
        for name, module in house.modules.items()
    }
    broken = []
    for start in inner:
        seen: set[str] = set()
        waiting = list(inner[start])
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting += inner[name]
        if start in seen:
            broken.append(
                f"{start} imports itself through {', '.join(sorted(seen - {start})) or 'itself'}"
            )
    return broken


def hidden_imports(house: House, below: dict[str, int], floor: int) -> list[str]:
    """Imports of the house inside functions, on the floors below `floor`: the usual way to hide a cycle."""
    return [
        f"{found.place}: imports {found.name} inside a function"
        for module in house.modules.values()
        if below.get(room_of(module.name, house.root.name), floor) < floor
        for found in house.imports(module)
        if found.inside_function and found.name.split(".")[0] == house.root.name
    ]


def brings_in(house: House, start: str, library: str) -> list[str]:
    """The imports by which `start` loads the library, directly or through others."""
    return [
        f"{by.place}: {start} brings in {name}"
        for name, by in house.reached(start).items()
        if name.split(".")[0] == library and by is not None
    ]


def long_files(root: Path, patterns: list[str], most: int) -> list[str]:
    return [
        f"{file}: {lines} lines, at most {most}"
        for pattern in patterns
        for file in sorted(root.glob(pattern))
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > most
    ]


def long_functions(house: House, most: int) -> list[str]:
    return [
        f"{module.at(node)}: {node.name} has {lines} lines, at most {most}"
        for module in house.modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (lines := (node.end_lineno or node.lineno) - node.lineno + 1) > most
    ]


def functions_that_take(house: House, types: set[str]) -> list[str]:
    """The functions with a parameter whose annotation names one of the types."""
    found = []
    for module in house.modules.values():
        for node in ast.walk(module.tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            arguments = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
            texts = [ast.unparse(one.annotation) for one in arguments if one.annotation is not None]
            if any(types & set(re.findall(r"\w+", text)) for text in texts):
                found.append(f"{module.at(node)}: {node.name}")
    return found


def global_statements(house: House) -> list[str]:
    return [
        f"{module.at(node)}: global {', '.join(node.names)}"
        for module in house.modules.values()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Global)
    ]


def texts(module: Module) -> Iterator[tuple[int, str, bool]]:
    """(line, text, whether it is a docstring) of every string and comment of a module, on one line each."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield node.lineno, _on_one_line("".join(map(str, parts))), False
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, _on_one_line(node.value), id(node) in docstrings
    source = io.StringIO(module.file.read_text(encoding="utf-8"))
    for token in tokenize.generate_tokens(source.readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], _on_one_line(token.string), False


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def refused_words(module: Module, plain_words: Mapping[str, str]) -> list[str]:
    """One line for each idiom, a regular expression, that a text of the module matches, with the plain words for it."""
    broken = set()
    for line, text, _ in texts(module):
        for idiom, plain in plain_words.items():
            found = re.search(idiom, text)
            if found:
                broken.add((line, f"{module.file}:{line}: {found.group(0)!r}: write {plain}"))
    return [message for _, message in sorted(broken)]


def hanging_docstrings(module: Module) -> list[str]:
    """Docstrings without a subject, such as 'Of CUDA; torch 2.8 does not yet.'"""
    return [
        f"{module.file}:{line}: begins with 'Of': say what it is"
        for line, text, is_docstring in texts(module)
        if is_docstring and re.match(r"Of (?!course\b)", text)
    ]


def imports_from_test_files(folder: Path) -> list[str]:
    """Imports of a test file by any other file of the tests: what they share belongs into tests/support."""
    broken = []
    for file in sorted(folder.rglob("*.py")):
        own = ".".join(file.relative_to(folder.parent).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom | ast.Import):
                continue
            base = getattr(node, "module", None) or ""
            names = {base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)} - {""}
            for name in sorted(names):
                is_test_file = name.startswith("tests.") and name.rpartition(".")[2].startswith(
                    "test_"
                )
                if is_test_file and name != own:
                    broken.append(f"{file}:{node.lineno}: imports {name}")
    return broken


def helpers_outside_support(folder: Path) -> list[str]:
    """Modules of the tests that are neither a test file nor in tests/support."""
    return [
        str(file)
        for file in sorted(folder.rglob("*.py"))
        if file.name not in ("__init__.py", "conftest.py")
        and not file.name.startswith("test_")
        and file.relative_to(folder).parts[0] != "support"
    ]
