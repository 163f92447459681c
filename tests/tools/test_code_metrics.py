"""The figures about the code are those that a person counts by hand in a tiny package."""

import json

import pytest

from tools import code_metrics
from tools.code_metrics import measure, opens_with_formula
from tools.source_tree import Package
from tools.step_walk import StepWalk

LOOP = '''"""Steps in, a model out."""

from tiny.core.model import Model, Other

MODEL = Model()


def _step(batches: list) -> int:
    a, b = 1, 2  # a comment is not a line of its own

    total = sum(x for x in batches)
    return _helper(MODEL.run(total)) + a + b


def _helper(value: int) -> int:
    return value


def shared() -> list:
    return [Other for _ in range(2)]
'''  # 20 lines, 10 of code: docstring, comment and blank lines do not count
MODEL = '''"""Defines the model."""


class Base:
    """One."""

    def run(self, value: int) -> int:
        return value


class Model(Base):
    def run(self, value: int) -> int:
        return self._twice(value)

    def _twice(self, value: int) -> int:
        return value + value


class Other(Base):
    pass


def shared() -> None:
    """Not called by a step."""
'''  # 24 lines, 11 of code
TWIN = """class Base:
    pass
"""

BY_HAND = {
    "files": 5,
    "lines": 20 + 24 + 2,
    "code_lines": 10 + 11 + 2,
    "functions": 7,
    "function_median": 2,
    "function_p90": 5,
    "function_max": 5,
    "comprehensions_per_1k": round(2 / 23 * 1000, 1),
    "tuple_assignments_per_1k": round(1 / 23 * 1000, 1),
    "helpers_used_once": 2,
    "class_names_used_twice": 1,
    "function_names_in_several_files": 1,
    "formula_openings": 1,
    "small_files": 3,
    "readme_words": 4,
    "step_files": 2,
    "step_lines": 20 + 24,
}


@pytest.fixture
def tiny(tmp_path):
    files = {
        "__init__.py": "",
        "loop.py": LOOP,
        "core/__init__.py": "",
        "core/model.py": MODEL,
        "core/twin.py": TWIN,
    }
    for name, text in files.items():
        file = tmp_path / "tiny" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "README.md").write_text("Four words about it\n")
    return tmp_path / "tiny"


def test_every_figure_is_the_one_counted_by_hand(tiny):
    found = measure(tiny, ["loop.py:_step"], [])
    assert {name: found[name] for name in BY_HAND} == BY_HAND
    assert found.keys() == code_metrics.METRICS.keys()


def test_statements_and_expressions_are_counted_per_code_line(tmp_path):
    """`x = f(1) + y`: the assignment, x, the sum, the call, f, 1 and y are seven; the second line has one statement."""
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.py").write_text("x = f(1) + y\n\n\npass\n")
    assert measure(tmp_path / "p")["nodes_per_line"] == (7 + 1) / 2


def test_a_step_crosses_the_files_whose_functions_it_calls_and_no_others(tiny):
    (tiny / "core" / "twin.py").write_text(TWIN + "\n\ndef unused():\n    pass\n")
    walk = StepWalk(Package(tiny))
    assert [file.module for file in walk.files_from(["loop.py:_step"])] == [
        "tiny.loop",
        "tiny.core.model",
    ]
    assert [file.module for file in walk.files_from(["loop.py:_step"], ["core"])] == ["tiny.loop"]
    assert [file.module for file in walk.files_from(["loop.py:shared"])] == ["tiny.loop"]
    assert walk.files_from(["loop.py:missing"]) == {}


@pytest.mark.parametrize(
    ("body", "crosses"),
    [
        ("from q.b import work\ndef start():\n    work()", True),
        ("from q import b\ndef start():\n    b.work()", True),
        ("from .b import work as other\ndef start():\n    hook(other)", True),
        (
            "from q.b import Box\ndef start(box: 'list[Box]'):\n    for one in box:\n        one.open()",
            True,
        ),
        (
            "from q.b import Box\nclass C:\n    def __init__(self):\n        self.box = Box()\n"
            "    def start(self):\n        self.box.open()",
            True,
        ),
        ("from q.b import Box\ndef start(x):\n    Box()(x)", True),
        ("from q.b import Box\ndef start(x: Box) -> Box:\n    return x", False),
        ("def start(x):\n    x.open()", False),
    ],
)
def test_calls_are_followed_by_name_and_by_the_class_of_an_object(tmp_path, body, crosses):
    """Through imports, annotations, fields and constructors; an annotation alone is no call."""
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "a.py").write_text(body)
    (tmp_path / "q" / "b.py").write_text(
        "def work():\n    pass\n"
        "class Box:\n    def open(self):\n        pass\n    def forward(self, x):\n        pass\n"
    )
    found = [file.module for file in StepWalk(Package(tmp_path / "q")).files_from(["a.py:start"])]
    assert found == (["q.a", "q.b"] if crosses else ["q.a"])


@pytest.mark.parametrize(
    ("docstring", "formula"),
    [
        ("Text in, tokens out.", True),
        ("A folder in, what is wrong with it out: one line each.", True),
        ("Reads a folder in order. Prints what is out of date.", False),
        ("Runs the stages in order and writes out the result.", False),
        ("", False),
    ],
)
def test_the_formula_is_told_from_plain_sentences(docstring, formula):
    assert opens_with_formula(docstring) is formula


def test_the_command_prints_a_table_or_json_for_several_packages(tiny, capsys):
    assert code_metrics.main([str(tiny), str(tiny / "core")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(code_metrics.METRICS)
    assert lines[1].split() == ["files", "5", "3"]
    assert code_metrics.main([str(tiny), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[str(tiny)]["class_names_used_twice"] == 1


def test_a_path_that_is_not_a_folder_is_refused(tiny, capsys):
    with pytest.raises(SystemExit) as ended:
        code_metrics.main([str(tiny / "loop.py")])
    assert ended.value.code == 2
    assert "is not a folder" in capsys.readouterr().err
