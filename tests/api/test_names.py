"""What `import megascratch` offers: the same names at run time, in `dir` and for type checkers."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import megascratch as ms


def test_importing_it_loads_neither_torch_nor_numpy_and_lists_all_names():
    code = (
        "import sys, megascratch as ms; print(dir(ms) == sorted(ms.__all__), ms.__version__);"
        "print({'torch', 'numpy', 'ruamel'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"True {ms.__version__}", "set()"]


def test_the_stub_for_type_checkers_has_the_names_of_the_module_from_the_same_places():
    stub = ast.parse(Path(ms.__file__).with_suffix(".pyi").read_text(encoding="utf-8"))
    places = {}
    for statement in stub.body:
        if isinstance(statement, ast.ImportFrom):
            (alias,) = statement.names
            places[alias.asname] = (statement.module, alias.name)
    assert places == ms._PLACES
    assert {"__version__", *places} == set(ms.__all__)


@pytest.mark.parametrize("name", [name for name in ms.__all__ if name != "__version__"])
def test_every_name_is_there_and_documented(name):
    assert getattr(ms, name).__doc__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="megascratch' has no attribute 'Trainer'"):
        ms.Trainer  # noqa: B018
