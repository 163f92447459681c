"""Lists the files that one training step crosses, by following calls through a package without importing it."""

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tools.source_tree import FUNCTIONS, Package, SourceFile

DEEPEST = 6  # nested expressions that are looked into for the class of an object


@dataclass(frozen=True)
class Function:
    """A function or method with its file; `owner` is the qualified name of its class, or empty."""

    file: SourceFile
    node: ast.FunctionDef | ast.AsyncFunctionDef
    owner: str

    @property
    def module(self) -> str:
        return self.file.module


class StepWalk:
    """Follows calls from one function and lists the files of every function that is reached.

    From a function the walk goes on to
      1. each function of the package that it names, its own or an imported one (so hooks and callbacks count)
      2. `__init__` and `__post_init__` of a class that it calls; `forward` and `backward` where it names `Class.apply`
      3. the method or property `m` for `x.m`, in each class that `x` may have, in its bases and its subclasses
      4. `forward` and `__call__` of the classes of an object that it calls
    The classes of an object are those of the package that are named in its annotation (list[Bucket] names Bucket), in
    the annotation of the parameter, field, property or return value it comes from, or the class called to make it.
    Where nothing tells the class of `x`, the method `m` is followed if one class alone defines it, with its relatives,
    among the modules that the caller's module imports, directly or through others.
    """

    def __init__(self, package: Package):
        self.package = package
        self.functions: dict[str, Function] = {}  # by qualified name: module.f or module.Class.m
        self.classes: dict[str, ast.ClassDef] = {}
        self.files = {file.module: file for file in package.files}
        self.names: dict[str, dict[str, str]] = {}  # module -> local name -> qualified name
        for file in package.files:
            self._note_names(file)
        self.relatives: dict[str, set[str]] = {name: {name} for name in self.classes}
        self.owners: dict[str, set[str]] = {}  # method name -> the classes that define it
        self.loaded: dict[str, set[str]] = {}  # module -> what importing it loads
        self.fields: dict[tuple[str, str], list[tuple[ast.AST, Function | None]]] = {}
        for name in self.classes:
            self._note_relatives(name)
        for function in self.functions.values():
            self._note_method(function)
        self.known: dict[
            tuple[str, str], set[str]
        ] = {}  # (class, attribute) -> classes, as far as they were asked for

    def files_from(
        self, starts: Sequence[str], left_out: Sequence[str] = ()
    ) -> dict[SourceFile, str]:
        """File -> the function that reached it first, from functions given as FILE:FUNCTION; {} if there are none.

        Calls into the files and folders of `left_out`, relative to the package, are not followed.
        """
        waiting = [name for start in starts for name in self._named(start)]
        came_from = dict.fromkeys(waiting, "start")
        while waiting:
            caller = waiting.pop(0)
            for name in sorted(self._called_by(self.functions[caller])):
                if (
                    name in self.functions
                    and name not in came_from
                    and not self._is_in(name, left_out)
                ):
                    came_from[name] = caller
                    waiting.append(name)
        files: dict[SourceFile, str] = {}
        for name, caller in came_from.items():
            files.setdefault(self.functions[name].file, caller)
        return files

    def _is_in(self, name: str, places: Sequence[str]) -> bool:
        path = self.functions[name].file.path
        return any(path.is_relative_to(self.package.root / place) for place in places)

    def _named(self, start: str) -> list[str]:
        path, _, wanted = start.partition(":")
        found = []
        for name, function in self.functions.items():
            if function.file.path == self.package.root / path and function.node.name == wanted:
                found.append(name)
        return found

    # ---- what the package defines

    def _note_names(self, file: SourceFile) -> None:
        names = self.names.setdefault(file.module, {})
        for node in ast.walk(file.tree):
            if isinstance(node, ast.ImportFrom):
                base = _imported_from(file, node)
                names.update(
                    {alias.asname or alias.name: f"{base}.{alias.name}" for alias in node.names}
                )
        for node in file.tree.body:
            if isinstance(node, FUNCTIONS):
                names[node.name] = f"{file.module}.{node.name}"
                self.functions[names[node.name]] = Function(file, node, "")
            elif isinstance(node, ast.ClassDef):
                owner = f"{file.module}.{node.name}"
                names[node.name] = owner
                self.classes[owner] = node
                for inner in node.body:
                    if isinstance(inner, FUNCTIONS):
                        self.functions[f"{owner}.{inner.name}"] = Function(file, inner, owner)

    def _note_relatives(self, name: str) -> None:
        """Bases and subclasses, over any number of steps: a call through either may land here."""
        node = self.classes[name]
        module = _module_of(name)
        for inner in node.body:
            if isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                self.fields.setdefault((name, inner.target.id), []).append((inner.annotation, None))
        waiting = [(base, module) for base in node.bases]
        while waiting:
            base, module = waiting.pop()
            for parent in self._classes_in(base, module) - self.relatives[name]:
                self.relatives[name].add(parent)
                self.relatives[parent].add(name)
                waiting += [(further, _module_of(parent)) for further in self.classes[parent].bases]

    def _note_method(self, function: Function) -> None:
        if not function.owner:
            return
        self.owners.setdefault(function.node.name, set()).add(function.owner)
        if function.node.returns is not None:
            self.fields.setdefault((function.owner, function.node.name), []).append(
                (function.node.returns, None)
            )
        for node in ast.walk(function.node):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Attribute):
                self.fields.setdefault((function.owner, node.target.attr), []).append(
                    (node.annotation, None)
                )
            elif isinstance(node, ast.Assign):
                for target, value in _pairs(node):
                    if isinstance(target, ast.Attribute):
                        self.fields.setdefault((function.owner, target.attr), []).append(
                            (value, function)
                        )

    def _resolve(self, name: str, module: str) -> str:
        """The qualified name of what a module calls `name`, through re-exports; empty if it is not the package's."""
        full = self.names.get(module, {}).get(name, "")
        for _ in range(5):
            if full in self.classes or full in self.functions or full in self.files:
                return full
            outer, _, last = full.rpartition(".")
            full = self.names.get(outer, {}).get(last, "")
        return ""

    def _classes_in(self, annotation: ast.AST | None, module: str) -> set[str]:
        """The classes of the package that an annotation names."""
        words: set[str] = set()
        for node in ast.walk(annotation) if annotation is not None else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                words.update(re.findall(r"\w+", node.value))
            elif isinstance(node, ast.Name):
                words.add(node.id)
        return {self._resolve(word, module) for word in words} & set(self.classes)

    # ---- the class of an object

    def _attribute(self, owner: str, attribute: str) -> set[str]:
        """The classes that `owner.attribute` may have."""
        key = (owner, attribute)
        if key not in self.known:
            self.known[key] = set()  # an attribute that is made of itself adds nothing
            found: set[str] = set()
            for name in self.relatives[owner]:
                for source, function in self.fields.get((name, attribute), ()):
                    if function is None:
                        found |= self._classes_in(source, _module_of(name))
                    else:
                        found |= self._types(source, function)
            self.known[key] = found
        return self.known[key]

    def _types(self, node: ast.AST, function: Function, depth: int = 0) -> set[str]:
        """The classes that an expression inside a function may have."""
        if depth > DEEPEST:
            return set()
        if isinstance(node, ast.Name):
            return self._variable(node.id, function, depth)
        found: set[str] = set()
        if isinstance(node, ast.Attribute):
            for owner in self._types(node.value, function, depth + 1):
                found |= self._attribute(owner, node.attr)
        elif isinstance(node, ast.Call):
            for target in self._targets(node.func, function, depth + 1):
                if target in self.classes:
                    found.add(target)
                elif target in self.functions:
                    called = self.functions[target]
                    found |= self._classes_in(called.node.returns, called.module)
        else:
            for part in ast.iter_child_nodes(node):
                if isinstance(part, ast.expr):
                    found |= self._types(part, function, depth + 1)
        return found

    def _variable(self, name: str, function: Function, depth: int) -> set[str]:
        """The classes of a parameter or a local variable."""
        if name in ("self", "cls") and function.owner:
            return {function.owner}
        found: set[str] = set()
        arguments = function.node.args
        for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if argument.arg == name:
                found |= self._classes_in(argument.annotation, function.module)
        for node in ast.walk(function.node):
            if isinstance(node, ast.Assign):
                for target, value in _pairs(node):
                    if _binds(target, name):
                        found |= self._types(value, function, depth + 1)
            elif isinstance(node, ast.AnnAssign) and _binds(node.target, name):
                found |= self._classes_in(node.annotation, function.module)
            elif isinstance(node, ast.For | ast.comprehension) and _binds(node.target, name):
                found |= self._types(node.iter, function, depth + 1)
        return found

    # ---- calls

    def _targets(self, node: ast.AST, function: Function, depth: int = 0) -> set[str]:
        """The functions and classes that a name or an attribute stands for."""
        if isinstance(node, ast.Name):
            return {self._resolve(node.id, function.module)} - {""}
        if not isinstance(node, ast.Attribute):
            return set()
        owners: set[str] = set()
        if isinstance(node.value, ast.Name):
            named = self._resolve(node.value.id, function.module)
            if named in self.files:
                return {self._resolve(node.attr, named)} - {""}
            owners = {named} & set(self.classes)
        owners = (
            owners
            or self._types(node.value, function, depth)
            or self._only_owner(node.attr, function.module)
        )
        if node.attr == "apply":
            return set(self._methods(owners, "forward", "backward"))
        return set(self._methods(owners, node.attr))

    def _only_owner(self, method: str, module: str) -> set[str]:
        """The classes that define the method in what the module imports, if they are all related; else none."""
        near = {
            owner
            for owner in self.owners.get(method, ())
            if _module_of(owner) in self._imports(module)
        }
        for owner in near:
            if near <= self.relatives[owner]:
                return near
        return set()

    def _imports(self, module: str) -> set[str]:
        """The module and the package's modules that importing it loads."""
        if module not in self.loaded:
            seen = {module}
            waiting = [module]
            while waiting:
                for full in self.names.get(waiting.pop(), {}).values():
                    for name in (full, _module_of(full)):
                        if name in self.files and name not in seen:
                            seen.add(name)
                            waiting.append(name)
            self.loaded[module] = seen
        return self.loaded[module]

    def _methods(self, owners: set[str], *methods: str) -> Iterator[str]:
        for owner in owners:
            for name in self.relatives[owner]:
                yield from (
                    f"{name}.{method}" for method in methods if f"{name}.{method}" in self.functions
                )

    def _called_by(self, function: Function) -> set[str]:
        called: set[str] = set()
        for node in _evaluated(function.node):
            if isinstance(node, ast.Call):
                called |= self._calls(node, function)
            elif isinstance(node, ast.Name | ast.Attribute):
                called |= self._targets(node, function) & set(self.functions)
        return called

    def _calls(self, node: ast.Call, function: Function) -> set[str]:
        """What a call runs beside the functions that it names: constructors, and methods of called objects."""
        called: set[str] = set()
        for name in self._targets(node.func, function) & set(self.classes):
            called.update({f"{name}.__init__", f"{name}.__post_init__"})
        if not called:
            called.update(self._methods(self._types(node.func, function), "forward", "__call__"))
        return called


def _imported_from(file: SourceFile, node: ast.ImportFrom) -> str:
    """The absolute module of `from ... import`."""
    if not node.level:
        return node.module or ""
    parts = file.module.split(".")
    if file.path.name != "__init__.py":
        parts = parts[:-1]
    parts = parts[: len(parts) - node.level + 1]
    return ".".join([*parts, node.module] if node.module else parts)


def _module_of(qualified: str) -> str:
    return qualified.rpartition(".")[0]


def _pairs(node: ast.Assign) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Each target with its value; `a, b = x, y` gives two pairs."""
    for target in node.targets:
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            yield from zip(target.elts, node.value.elts, strict=False)
        else:
            yield target, node.value


def _evaluated(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """The nodes of the body that run; annotations only describe."""
    waiting: list[ast.AST] = [*function.body]
    while waiting:
        node = waiting.pop()
        yield node
        for child in ast.iter_child_nodes(node):
            is_annotation = isinstance(node, ast.AnnAssign) and child is node.annotation
            if not is_annotation and not isinstance(child, ast.arguments):
                waiting.append(child)


def _binds(target: ast.AST, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(target))
