"""What README and documentation tell a reader to type works, in the order of each page, in a folder with nothing else.

Pages that train or start several ranks are minutes of work together and run with `make test-deep`.
"""

from pathlib import Path

import pytest

from tests.support import doc_blocks as law

QUICK = ("guides/schedules", "reference/python")
"""Pages below docs/ whose blocks take seconds together."""
NOT_RUN_AT_MOST = 10
README_LINES_AT_MOST = 150

PAGES = law.pages()


def name_of(page: Path) -> str:
    return str(page.relative_to(law.ROOT).with_suffix("")).removeprefix("docs/")


def is_run(block: law.Block) -> bool:
    return block.language in law.RUN and block.reason_not_run is None


def walks() -> dict[str, list[Path]]:
    """Pages that are run one after the other in one folder: each for itself, but the tutorial's chapters together."""
    found: dict[str, list[Path]] = {}
    for page in PAGES:
        if any(is_run(block) for block in law.blocks(page)):
            name = "tutorial" if page.parent.name == "tutorial" else name_of(page)
            found.setdefault(name, []).append(page)
    return found


WALKS = walks()
LONG = [name for name in WALKS if name not in QUICK]


def problems_of(walk: str, folder: Path) -> list[str]:
    """Runs the blocks up to the first one that fails: what follows it needs what it makes."""
    law.prepare(folder)
    for page in WALKS[walk]:
        for block in law.blocks(page):
            if is_run(block):
                problem = law.run(block, folder, timeout=900.0)
                if problem:
                    return [problem]
    return []


@pytest.mark.parametrize("walk", QUICK)
def test_every_block_runs_as_it_stands(walk, tmp_path):
    assert problems_of(walk, tmp_path) == []


@pytest.mark.deep
@pytest.mark.parametrize("walk", LONG)
def test_every_block_that_trains_runs_as_it_stands(walk, tmp_path):
    assert problems_of(walk, tmp_path) == []


def test_a_block_that_is_not_run_says_why_and_there_are_few_of_them():
    reasons = [
        block for page in PAGES for block in law.blocks(page) if block.reason_not_run is not None
    ]
    assert [block.place for block in reasons if not block.reason_not_run] == []
    assert len(reasons) <= NOT_RUN_AT_MOST, [block.place for block in reasons]


def test_every_block_has_a_language_that_says_whether_it_is_run():
    known = (*law.RUN, *law.SHOWN)
    unknown = [
        block.place for page in PAGES for block in law.blocks(page) if block.language not in known
    ]
    assert unknown == []


def test_the_readme_can_be_read_in_two_pages():
    assert (
        len((law.ROOT / "README.md").read_text(encoding="utf-8").splitlines())
        <= README_LINES_AT_MOST
    )


FENCE = "```"


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        (f"{FENCE}bash\nexit 3\n{FENCE}", "exit code 3, not 0"),
        (f"<!-- exit code: 3 -->\n{FENCE}bash\nexit 3\n{FENCE}", ""),
        (f"{FENCE}bash\nfalse | true\n{FENCE}", "exit code 1, not 0"),
        (f"{FENCE}console\n$ false\n{FENCE}", "exit code 1, not 0"),
        (
            f"<!-- exact output -->\n{FENCE}console\n$ echo \\\n  one\ntwo\n{FENCE}",
            "not printed: ['two']",
        ),
        (f"<!-- exact output -->\n{FENCE}console\n$ echo one\none\n{FENCE}", ""),
        (f"{FENCE}python\nraise SystemExit(4)\n{FENCE}", "exit code 4, not 0"),
        (f"{FENCE}yaml\nnum_layer: 3\n{FENCE}", "did you mean num_layers?"),
        (f"{FENCE}yaml\nnum_layers: 3\n{FENCE}", ""),
    ],
)
def test_a_block_that_does_not_work_is_found(tmp_path, monkeypatch, markdown, expected):
    monkeypatch.setattr(law, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(markdown, encoding="utf-8")
    (block,) = law.blocks(page)
    problem = law.run(block, tmp_path, timeout=60.0)
    assert expected in problem
    assert bool(expected) == bool(problem)
