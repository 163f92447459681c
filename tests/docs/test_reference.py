"""The generated reference has everything, and what the pages name exists."""

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from docs import generate_reference
from docs.figures import draw
from megascratch.commands import VERBS
from megascratch.config.fields import SETTINGS
from megascratch.config.help import COMMON
from tests.support.doc_blocks import ROOT, pages


def test_every_setting_stands_in_the_reference_with_its_meaning():
    rows = re.findall(
        r"^\| `(\w+)` \|.*\| ([^|]+) \|$", generate_reference.settings_page(), flags=re.MULTILINE
    )
    assert [name for name, _ in rows] == list(SETTINGS)
    assert [name for name, meaning in rows if not meaning.strip()] == []


def test_the_settings_for_beginners_have_the_default_and_the_meaning_of_the_code():
    page = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
    chosen = re.findall(r"^\| `(\w+)` \| `(.*)` \| (.*) \|$", page, flags=re.MULTILINE)
    row = r"^\| `(\w+)` \| [^|]* \| `([^|]*)` \| [^|]* \| (.*) \|$"
    generated = re.findall(row, generate_reference.settings_page(), flags=re.MULTILINE)
    in_the_code = {name: (default, meaning) for name, default, meaning in generated}
    stale = []
    for name, default, meaning in chosen:
        default_now, meaning_now = in_the_code.get(name, ("", ""))
        if default != default_now or not meaning_now.startswith(meaning):
            stale.append((name, default_now, meaning_now))
    assert tuple(name for name, _, _ in chosen) == COMMON
    assert stale == []


def test_every_verb_and_its_sub_verbs_stand_in_the_reference():
    page = generate_reference.command_line_page()
    for verb in VERBS:
        assert f"\n## {verb}\n" in f"\n{page}"
    for words in ("tokenizer train", "data audit", "checkpoint reshard", "schedule show"):
        assert f"usage: megascratch {words} " in page
    assert max(map(len, page.split("## pretrain")[1].split("```")[1].splitlines())) <= 80


def test_every_module_of_the_python_reference_has_entries():
    page = generate_reference.python_page()
    for module in (name for names in generate_reference.PYTHON.values() for name in names):
        assert re.search(rf"\{{py:(class|function)\}} {re.escape(module)}\.\w+", page), module


def test_every_format_has_a_specification():
    sections = generate_reference.formats_page().split("\n## ")
    assert len(sections) == len(generate_reference.FORMATS)
    assert [section.splitlines()[0] for section in sections if len(section) < 200] == []


@cache
def tracked_files() -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_source_file_that_a_page_names_exists(page):
    """A name may leave out the folders in front."""
    files = [f"/{file}" for file in tracked_files()]
    named = set(
        re.findall(
            r"`([\w./-]+\.(?:py|h|cpp|sh|sbatch|toml|txt))`", page.read_text(encoding="utf-8")
        )
    )
    examples = {"benchmarks/bench_NAME.py", "merges.txt", "sample.txt", "input.txt"}
    examples |= {"command.txt", "log.txt", "output_dir/log.txt"}  # of the folder of a run
    examples |= {"my_norm.py"}  # of the user
    of_others = {"preprocess_data_fast.py", "prepare.py", "train.py", "sample.py", "run_clm.py"}
    of_others.add("data/shakespeare_char/input.txt")
    examples |= set(re.findall(r"^# (\S+\.py)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    assert [
        name
        for name in sorted(named - examples - of_others)
        if not any(file.endswith(f"/{name}") for file in files)
    ] == []


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_local_link_leads_to_a_file_and_a_headline(page):
    broken = []
    text = re.sub(
        r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL
    )
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors_of(target)):
            broken.append(link)
    assert broken == []


@cache
def anchors_of(page: Path) -> set[str]:
    """As GitHub makes them of headlines; those of the generated reference are not known before a build."""
    text = page.read_text(encoding="utf-8")
    included = re.search(r"\{include\} generated/([\w-]+)\.md", text)
    if included:
        make = {
            "python": generate_reference.python_page,
            "settings": generate_reference.settings_page,
        }
        text += make[included[1]]() if included[1] in make else ""
    headlines = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", headline.lower()).replace(" ", "-") for headline in headlines}


@pytest.mark.parametrize("name", draw.FIGURES)
def test_a_figure_is_what_its_script_draws_and_has_a_legend(name):
    file = ROOT / "docs" / "figures" / f"{name}.svg"
    drawing = draw.FIGURES[name]()
    assert file.read_text(encoding="utf-8") == drawing.svg()
    assert drawing.has_legend


@pytest.mark.deep
def test_the_documentation_builds_without_a_warning(tmp_path):
    pytest.importorskip("sphinx")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", "docs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "reference" / "settings.html").stat().st_size > 10_000
