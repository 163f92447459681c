"""The page of benchmarks and the scripts belong together, and a run replaces the figures of its own section only."""

from pathlib import Path

import pytest

from benchmarks import run_all

PAGE = run_all.PAGE.read_text(encoding="utf-8")
SCRIPTS = sorted(path.stem for path in (run_all.ROOT / "benchmarks").glob("bench_*.py"))
SMALL = """\
## a
<!-- bench: python a.py -->
old a
<!-- end -->
between
<!-- bench: python a.py --fast -->
old fast
<!-- end -->
after
"""


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_has_a_section(script):
    assert f"### {script}\n" in PAGE


def test_every_command_of_the_page_is_a_script():
    commands = run_all.chosen(PAGE, [])
    assert len(commands) >= len(SCRIPTS) - 1  # bench_bubbles needs a table that is not ours
    assert [
        command for command in commands if not Path(run_all.ROOT, command.split()[1]).exists()
    ] == []


def test_a_run_replaces_its_own_figures_and_says_where_they_are_from():
    filled = run_all.fill(SMALL, "python a.py", lambda command: "new  \nrow\n", "here and now")
    expected = SMALL.replace("old a", "`python a.py`, here and now:\n\n```text\nnew\nrow\n```")
    assert filled == expected
    assert (
        run_all.fill(filled, "python a.py", lambda command: "new  \nrow\n", "here and now")
        == expected
    )


def test_a_run_that_fails_changes_nothing():
    assert run_all.fill(SMALL, "python a.py", lambda command: None, "here and now") == SMALL


@pytest.mark.parametrize(
    ("names", "expected"),
    [([], ["python a.py", "python a.py --fast"]), (["fast"], ["python a.py --fast"])],
)
def test_names_choose_sections(names, expected):
    assert run_all.chosen(SMALL, names) == expected
