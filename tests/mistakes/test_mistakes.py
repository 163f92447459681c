"""A user's mistake ends before any work, in a few lines that name it and a fix that works; never in a traceback."""

import importlib.util
import re

import pytest

from tests.support.mistakes.row import Mistake
from tests.support.mistakes.table import TABLE, answers, real_fixes

MOST_LINES = 6


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """The answers to all rows; the rows are judged together, since a process takes seconds to start."""
    return answers(tmp_path_factory.mktemp("mistakes") / "world")


def rows() -> list:
    """The table as parameters of a test."""
    found = []
    for row in TABLE:
        marks = []
        if row.needs and importlib.util.find_spec(row.needs) is None:
            marks.append(pytest.mark.skip(reason=f"needs {row.needs}"))
        found.append(pytest.param(row, id=row.name, marks=marks))
    return found


@pytest.mark.parametrize("row", rows())
def test_a_mistake_is_named_in_a_few_lines_and_its_fix_works(row: Mistake, answered):
    found = answered[row.name]
    mistake = found["mistake"]
    said = mistake["err"] if row.code else mistake["out"] + mistake["err"]
    assert mistake["code"] == row.code, said
    assert [part for part in row.says if part not in said] == [], said
    if row.code:
        assert 1 <= len(said.splitlines()) <= MOST_LINES, said
    assert "Traceback" not in said
    assert bad_lines(mistake["err"]) == []
    if row.code == 2:
        assert set(mistake["changed"]) <= set(row.leaves)
        assert mistake["out"] == ""
    if not row.fix_is_slow:
        assert found["fix"]["code"] == 0, found["fix"]["err"]


@pytest.mark.parametrize("name", [row.name for row in TABLE if not row.torch])
def test_what_needs_no_tensor_imports_no_torch(name, answered):
    assert not answered[name]["imports_torch"]


def test_what_a_message_proposes_works_when_it_is_followed_to_the_letter(answered):
    """Numbers of settings and of processes, and names behind "did you mean"."""
    helps = 0
    for row in TABLE:
        problems = len(answered[row.name]["mistake"]["err"].splitlines())
        for command, said in answered[row.name]["followed"].items():
            assert said == "" or len(said.splitlines()) < problems, (row.words, command, said)
            helps += 1
    assert helps > 40


@pytest.mark.deep
def test_every_fix_trains_to_its_end(tmp_path):
    found = real_fixes(tmp_path / "world")
    failed = {}
    for row in TABLE:
        fix = found[row.name]["fix"]
        if fix["code"] != 0:
            failed[row.name] = fix["err"]
    assert failed == {}


def bad_lines(said: str) -> list[str]:
    """Lines that are empty, begin with punctuation, repeat another one, or count one thing in the plural."""
    bad = []
    lines = said.splitlines()
    for number, line in enumerate(lines):
        text = line.strip()
        if not text or text[0] in ";,.:" or line in lines[:number]:
            bad.append(line)
        if re.search(r"(?<![\d.,-])1 (processes|ranks|layers|documents|problems)\b", text):
            bad.append(line)
    return bad


def test_the_table_is_large_and_every_name_is_its_own():
    names = [row.name for row in TABLE]
    assert len(names) == len(set(names))
    assert len(names) >= 40 + 20 + 30
