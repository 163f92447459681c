"""The rules of the house: imports go down the floors, nothing grows too long, what needs no torch loads none, and every
text is in plain words."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support import house as law
from tools.code_metrics import class_names_used_twice, opens_with_formula
from tools.source_tree import Package

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
            "verification inference doctor dry_run",
            "commands",
            "api",
            "__main__ tools examples benchmarks tests",
        ]
    )
    for room in rooms.split()
} | {"": 0}
SIDEWAYS = {("runtime", "config"), ("data_parallel", "optim")}

# Idioms that a reader stumbles over, as regular expressions -> the plain words.
PLAIN_WORDS = {
    r"\bmust (not )?divide by\b": "'must be divisible by'",
    r"(?<!\b[Tt]here )\b(is|are|was) no (?!longer\b|more\b|less\b|other\b|one\b)[a-z]+": "'is not a'",
    r"\btakes no (folder|file|value)": "'cannot be written' or 'does not accept a value'",
    r"\b[Mm]end(s|ed|ing)?\b": "'fix'",
    r"\ball the same\b": "'anyway'",
    r"\bpassed over\b": "'skipped'",
    r"\b[Ll]eav(e|es|ing)\b[^.;:]{0,40}\baway\b": "'remove'",
    r"\b([Gg]o(es|ing)?|[Ww]ent|gone) on\b": "'continue' or 'resume'",
    r"\b([Ww]hoever|[Ss]omebody|[Nn]obody)\b": "who it is: a rank, a process, the user",
    r"\b[Bb]eside\b": "'next to' or 'in addition to'",
    r"\banew\b": "'again'",
    r"\bonce more\b": "'again'",
    r"\b[Ss]ound(est)?\b": "'valid'",
    r"\b[Uu]nsound\b": "'damaged'",
    r"\b(stands?|standing|stood) still\b": "'hangs' or 'is stopped'",
    r"\b(lie|lies|lay|lying) (in|on|at|there|beside|behind|under|before|next)\b": "'is in' or 'is stored in'",
    r"\bspeaks? against\b": "'is a problem for'",
    r"\b(is|are) told\b": "'is reported'",
    r"\bdoes not come back\b": "'does not return'",
    r"\bthe one before\b": "'the previous one'",
}

NEED_NO_TORCH = [
    "megascratch.commands",
    "megascratch.commands.data",
    "megascratch.config.laws",
    "megascratch.config.layers",
    "megascratch.config.load",
    "megascratch.runtime.faults",
    "megascratch.runtime.heartbeat",
    "megascratch.runtime.launches",
    "megascratch.supervision.hang_watch",
    "megascratch.supervision.torchrun_watcher",
    "megascratch.supervision.launch",
    "megascratch.parallel.grid",
    "megascratch.parallel.shard",
    "megascratch.pipeline.passes",
    "megascratch.pipeline.simulate",
    "megascratch.pipeline.schedule",
    "megascratch.storage.store",
    "megascratch.storage.run_folders",
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
    patterns = [
        f"{room}/**/*.py" for room in ("megascratch", "tools", "benchmarks", "tests", "examples")
    ]
    assert law.long_files(ROOT, [*patterns, "csrc/*", "examples/**/*.sh"], most=500) == []


def test_the_makefile_has_at_most_60_lines():
    assert law.long_files(ROOT, ["Makefile"], most=60) == []


def test_no_function_is_longer_than_80_lines():
    assert law.long_functions(HOUSE, most=80) == []


def test_at_most_10_functions_take_the_whole_config():
    """A function takes the sections or the values that it needs."""
    found = law.functions_that_take(HOUSE, {"Config", "ResolvedConfig"})
    assert len(found) <= 10, found


def test_nothing_is_declared_global():
    assert law.global_statements(HOUSE) == []


def test_no_class_name_is_used_twice():
    found = class_names_used_twice(Package(ROOT / "megascratch"))
    assert {name: modules for name, modules in found.items() if not name.startswith("_")} == {}


def test_no_test_imports_from_a_test_file():
    assert law.imports_from_test_files(ROOT / "tests") == []


def test_helpers_of_tests_are_in_tests_support():
    assert law.helpers_outside_support(ROOT / "tests") == []


@cache
def texts_to_rewrite(module: str) -> list[str]:
    """What a reader would stumble over in the docstrings, comments and messages of a module."""
    source = HOUSE.modules[module]
    found = law.refused_words(source, PLAIN_WORDS) + law.hanging_docstrings(source)
    if opens_with_formula(ast.get_docstring(source.tree) or ""):
        found.append(f"{source.file}:1: 'X in, Y out': say what the file is for")
    return found


def test_every_text_is_in_plain_words():
    """No refused idiom, no docstring of the form 'X in, Y out' or 'Of ...'."""
    assert [line for module in HOUSE.modules for line in texts_to_rewrite(module)] == []


def test_help_loads_no_heavy_library():
    code = (
        "import sys; from megascratch.commands import main; main(['--help']);"
        "print({'torch', 'numpy', 'ruamel'} & set(sys.modules))"
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
        (
            "config/a.py",
            "from megascratch.layers import linear",
            "config (floor 0) imports layers (floor 2)",
        ),
        ("layers/a.py", "import megascratch.model.gpt", "layers (floor 2) imports model (floor 3)"),
        (
            "optim/a.py",
            "from megascratch.data_parallel.zero1 import x",
            "optim (floor 2) imports data_parallel (floor 2)",
        ),
        ("data/a.py", "from ..layers import linear", "data (floor 2) imports layers (floor 2)"),
        ("data/a.py", "from megascratch import model", "data (floor 2) imports model (floor 3)"),
        (
            "model/a.py",
            "def f():\n    import benchmarks.x",
            "model (floor 3) imports benchmarks (floor 8)",
        ),
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


def test_a_function_that_takes_the_whole_config_is_found(tmp_path):
    takes = "def f(a: int, config: Config | None = None): ...\ndef g(config: ModelConfig): ..."
    small = build(tmp_path, {"training/a.py": takes})
    (found,) = law.functions_that_take(small, {"Config"})
    assert found.endswith("training/a.py:1: f")


def test_torch_is_found_behind_another_module_and_behind_the_package(tmp_path):
    small = build(
        tmp_path,
        {
            "pipeline/__init__.py": "import torch",
            "pipeline/simulate.py": "",
            "parallel/a.py": "from . import b",
            "parallel/b.py": "from torch import nn",
        },
    )
    assert law.brings_in(small, "megascratch.pipeline.simulate", "torch")
    assert law.brings_in(small, "megascratch.parallel.a", "torch")
    assert not law.brings_in(small, "megascratch.parallel", "torch")


def test_a_long_function_and_a_long_file_are_found(tmp_path):
    small = build(tmp_path, {"layers/a.py": "def f():\n" + "    x = 1\n" * 5})
    assert [line.split(": ")[1] for line in law.long_functions(small, most=5)] == [
        "f has 6 lines, at most 5"
    ]
    assert len(law.long_files(tmp_path, ["**/*.py"], most=5)) == 1
    assert law.long_files(tmp_path, ["**/*.py"], most=6) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            '"""A file.\n\n    It must\n    divide by 3."""',
            "'must divide by': write 'must be divisible by'",
        ),
        ("x = 1  # nobody reads it", "'nobody': write who it is: a rank, a process, the user"),
        ('raise ValueError(f"{name} is no folder")', "'is no folder': write 'is not a'"),
        ('say("leave " "--load away")', "'leave --load away': write 'remove'"),
    ],
)
def test_an_idiom_is_found_in_docstrings_comments_and_messages(tmp_path, text, complaint):
    module = build(tmp_path, {"layers/a.py": text}).modules["megascratch.layers.a"]
    assert [line.split(": ", 1)[1] for line in law.refused_words(module, PLAIN_WORDS)] == [
        complaint
    ]


@pytest.mark.parametrize(
    "text",
    [
        '"""There is no checkpoint, and the lock is no longer held. What is left is removed."""',
        "lies = nobody = beside = 1",
    ],
)
def test_plain_words_and_names_are_fine(tmp_path, text):
    module = build(tmp_path, {"layers/a.py": text}).modules["megascratch.layers.a"]
    assert law.refused_words(module, PLAIN_WORDS) == []


def test_a_docstring_without_a_subject_is_found(tmp_path):
    text = '"""Of CUDA; torch does not yet."""\n\n\ndef f():\n    """Of course."""\n\n\nx = "Of no interest"'
    module = build(tmp_path, {"layers/a.py": text}).modules["megascratch.layers.a"]
    assert [line.split(": ", 1)[1] for line in law.hanging_docstrings(module)] == [
        "begins with 'Of': say what it is"
    ]


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("from tests.data.test_loader import rows", True),
        ("from tests.data import test_loader", True),
        ("import tests.data.test_loader", True),
        ("from tests.support.corpora import rows", False),
    ],
)
def test_an_import_from_a_test_file_is_found(tmp_path, line, broken):
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_a.py").write_text(line)
    assert bool(law.imports_from_test_files(tmp_path / "tests")) is broken


def test_a_helper_outside_support_is_found(tmp_path):
    for name in (
        "support/pool.py",
        "data/test_a.py",
        "data/__init__.py",
        "conftest.py",
        "data/helpers.py",
    ):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.touch()
    assert law.helpers_outside_support(tmp_path) == [str(tmp_path / "data" / "helpers.py")]
