"""Parses a Python package without importing it: its files, their code lines and their functions."""

import ast
import io
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class SourceFile:
    """One parsed file; `module` is its dotted name, with the package's own name first."""

    path: Path
    module: str
    text: str
    tree: ast.Module

    @cached_property
    def lines(self) -> int:
        return len(self.text.splitlines())

    @cached_property
    def code_lines(self) -> int:
        """Lines that hold a token of code; strings that are statements (docstrings) are not code."""
        filled: set[int] = set()
        skipped = {
            tokenize.COMMENT,
            tokenize.NL,
            tokenize.NEWLINE,
            tokenize.INDENT,
            tokenize.DEDENT,
        }
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in skipped and token.type != tokenize.ENDMARKER:
                filled.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Expr) and is_string(node.value):
                filled.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
        return len(filled)

    @cached_property
    def functions(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        return [node for node in ast.walk(self.tree) if isinstance(node, FUNCTIONS)]


@dataclass(frozen=True)
class Package:
    """The parsed files of one package folder. Files that this Python cannot parse are left out."""

    root: Path

    @cached_property
    def files(self) -> list[SourceFile]:
        found = []
        for path in sorted(self.root.rglob("*.py")):
            text = path.read_text(encoding="utf-8", errors="replace")
            parts = path.relative_to(self.root.parent).with_suffix("").parts
            if parts[-1] == "__init__":
                parts = parts[:-1]
            try:
                tree = ast.parse(text)
            except SyntaxError:
                continue
            found.append(SourceFile(path, ".".join(parts), text, tree))
        return found

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return [node for file in self.files for node in ast.walk(file.tree)]

    def count(self, *kinds: type[ast.AST]) -> int:
        return sum(isinstance(node, kinds) for node in self.nodes)


def is_string(node: ast.AST) -> bool:
    """A string constant, such as a docstring's."""
    return isinstance(node, ast.Constant) and isinstance(node.value, str)
