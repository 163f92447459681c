"""The files that name a setting are those that a person finds in a tiny package."""

import pytest

from tools import setting_files
from tools.setting_files import Named, files_that_name
from tools.source_tree import Package

FILES = {
    "config/settings.py": "class Tea:\n    sugar_cubes: int = 2\n    milk: bool = False\n",
    "config/ranges.py": 'ROWS = "tea_kind sugar_cubes"\n',
    "config/laws/tea.py": "def sweet(sugar_cubes: int) -> None: ...\n",
    "kettle.py": '"""About sugar_cubes."""\n\n\ndef pour(tea):\n    return tea.milk  # sugar_cubes\n',
    "words.py": 'MESSAGE = "sugar-cubes is not a number"\nOTHER = "sugar_cubes_more"\n',
    "calls.py": "replace(config, sugar_cubes=3)\n",
}


@pytest.fixture
def tiny(tmp_path):
    for name, text in FILES.items():
        file = tmp_path / "tiny" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path / "tiny"


def test_names_attributes_and_words_of_strings_count_but_no_comment(tiny):
    assert files_that_name(Package(tiny), ["sugar_cubes", "milk", "spoon"]) == {
        "sugar_cubes": Named(
            ["config/ranges.py", "config/settings.py"],
            ["calls.py", "config/laws/tea.py", "words.py"],
        ),
        "milk": Named(["config/settings.py"], ["kettle.py"]),
        "spoon": Named([], []),
    }


def test_the_table_has_a_line_per_setting_and_the_names_on_demand(tiny, capsys):
    assert setting_files.main([str(tiny), "--settings", "sugar_cubes", "milk", "--names"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["sugar_cubes", "2", "+", "3"]
    assert lines[2].split() == ["milk", "1", "+", "1"]
    assert "  uses: kettle.py" in lines


def test_a_folder_that_is_missing_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as leaving:
        setting_files.main([str(tmp_path / "none")])
    assert leaving.value.code == 2 and "is not a folder" in capsys.readouterr().err
