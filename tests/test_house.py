"""The laws of the house: imports go down the floors, nothing grows too long, and what needs no torch loads none."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import house as law

ROOT = Path(__file__).resolve().parent.parent
HOUSE = law.House(ROOT / "megascratch")

FLOORS = {
    room: floor
    for floor, rooms in enumerate(
        [
            "config runtime",
            "tokenizer parallel storage",
            "data layers pipeline optim data_parallel checkpoint supervision",
            "model curation",
            "training planner",
            "verification inference doctor",
            "commands",
            "__main__ tools examples benchmarks tests",
        ]
    )
    for room in rooms.split()
} | {"": 0}
SIDEWAYS = {("runtime", "config"), ("data_parallel", "optim")}

NEED_NO_TORCH = [
    "megascratch.commands",
    "megascratch.commands.data",
    "megascratch.config.laws",
    "megascratch.config.load",
    "megascratch.runtime.faults",
    "megascratch.runtime.heartbeat",
    "megascratch.supervision.torchrun_watcher",
    "megascratch.supervision.launch",
    "megascratch.parallel.grid",
    "megascratch.pipeline.passes",
    "megascratch.pipeline.simulate",
    "megascratch.pipeline.schedule",
    "megascratch.storage.store",
]


def test_imports_only_go_down_the_floors():
    assert law.imports_that_climb(HOUSE, FLOORS, SIDEWAYS) == []


def test_every_room_has_a_floor():
    assert law.rooms_without_floor(HOUSE, FLOORS) == []


def test_no_module_imports_itself_through_others():
    assert law.import_cycles(HOUSE) == []


def test_below_the_commands_no_function_hides_an_import_of_the_house():
    assert law.hidden_imports(HOUSE, FLOORS, FLOORS["commands"]) == []


@pytest.mark.parametrize("module", NEED_NO_TORCH)
def test_arithmetic_needs_no_torch(module):
    assert module in HOUSE.modules
    assert law.brings_in(HOUSE, module, "torch") == []


def test_no_file_is_longer_than_500_lines():
    patterns = [f"{room}/**/*.py" for room in ("megascratch", "tools", "benchmarks", "tests", "examples")]
    assert law.long_files(ROOT, [*patterns, "csrc/*", "examples/**/*.sh"], most=500) == []


def test_the_makefile_has_at_most_40_lines():
    assert law.long_files(ROOT, ["Makefile"], most=40) == []


def test_no_function_is_longer_than_70_lines():
    assert law.long_functions(HOUSE, most=70) == []


def test_nothing_is_declared_global():
    assert law.global_statements(HOUSE) == []


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from megascratch.commands import main; main(['--help']);"
        "print({'torch', 'numpy', 'tyro', 'ruamel'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "set()", "")


def build(folder: Path, files: dict[str, str]) -> law.House:
    """A small house of the given files under the package `megascratch`."""
    for name, text in {"__init__.py": "", **files}.items():
        file = folder / "megascratch" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return law.House(folder / "megascratch")


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("config/a.py", "from megascratch.layers import linear", "config (floor 0) imports layers (floor 2)"),
        ("layers/a.py", "import megascratch.model.gpt", "layers (floor 2) imports model (floor 3)"),
        (
            "optim/a.py",
            "from megascratch.data_parallel.zero1 import x",
            "optim (floor 2) imports data_parallel (floor 2)",
        ),
        ("data/a.py", "from ..layers import linear", "data (floor 2) imports layers (floor 2)"),
        ("data/a.py", "from megascratch import model", "data (floor 2) imports model (floor 3)"),
        ("model/a.py", "def f():\n    import benchmarks.x", "model (floor 3) imports benchmarks (floor 7)"),
    ],
)
def test_a_climbing_import_is_found_with_its_line(tmp_path, file, line, complaint):
    small = build(tmp_path, {file: line, "model/__init__.py": "", "layers/linear.py": ""})
    (found,) = law.imports_that_climb(small, FLOORS, SIDEWAYS)
    assert found.endswith(complaint)
    assert f"{file}:{2 if line.startswith('def') else 1}" in found


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("data_parallel/a.py", "from megascratch.optim import adamw"),
        ("layers/a.py", "from megascratch.layers import b\nfrom . import c\nimport torch"),
        ("commands/a.py", "from megascratch.training.loop import train"),
    ],
)
def test_a_step_down_or_inside_the_room_is_fine(tmp_path, file, line):
    assert law.imports_that_climb(build(tmp_path, {file: line}), FLOORS, SIDEWAYS) == []


def test_a_cycle_a_hidden_import_and_a_global_are_found(tmp_path):
    small = build(
        tmp_path,
        {
            "layers/a.py": "from megascratch.layers.b import x",
            "layers/b.py": "def f():\n    global x\n    from megascratch.layers import a",
        },
    )
    assert len(law.import_cycles(small)) == 2
    assert [line.split(": ")[1] for line in law.hidden_imports(small, FLOORS, 5)] == [
        "imports megascratch.layers.a inside a function"
    ]
    assert [line.split(": ")[1] for line in law.global_statements(small)] == ["global x"]


def test_torch_is_found_behind_another_module_and_behind_the_package(tmp_path):
    small = build(
        tmp_path,
        {"pipeline/__init__.py": "import torch", "pipeline/simulate.py": "", "parallel/a.py": "from . import b",
         "parallel/b.py": "from torch import nn"},
    )  # fmt: skip
    assert law.brings_in(small, "megascratch.pipeline.simulate", "torch")
    assert law.brings_in(small, "megascratch.parallel.a", "torch")
    assert not law.brings_in(small, "megascratch.parallel", "torch")


def test_a_long_function_and_a_long_file_are_found(tmp_path):
    small = build(tmp_path, {"layers/a.py": "def f():\n" + "    x = 1\n" * 5})
    assert [line.split(": ")[1] for line in law.long_functions(small, most=5)] == ["f has 6 lines, at most 5"]
    assert len(law.long_files(tmp_path, ["**/*.py"], most=5)) == 1
    assert law.long_files(tmp_path, ["**/*.py"], most=6) == []
