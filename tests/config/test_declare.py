"""A setting is said once: what a declaration holds reaches flags, YAML, checks, help, notices and resume by itself."""

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from megascratch.config.declare import differs, equals, help_texts, setting, settings_of
from megascratch.config.fields import SECTIONS, SETTINGS
from megascratch.config.flags import read_flags
from megascratch.config.help import flag_help
from megascratch.config.notices import without_effect
from megascratch.config.ranges import above, out_of_range, within
from megascratch.config.resume_effects import Change, ResumeRule, Side
from megascratch.config.resume_rules import compare_configs, rules
from megascratch.config.values import typed
from megascratch.config.yaml_file import read_file

ROOT = Path(__file__).resolve().parents[2]


def only_warmer(change: Change):
    before, now = change.values
    return ("free", "no kettle cools") if now > before else None


TASTE = ResumeRule("refused", "the tea tastes different")
WARMTH = ResumeRule("notice", "the tea is colder", only_warmer, "free if it is warmer")


@dataclass(frozen=True)
class TeaConfig:
    """How the tea is made."""

    tea_kind: Literal["black", "green"] = setting("black", TASTE)
    """Leaves in the pot."""
    tea_degrees: float = setting(95.0, WARMTH, above(0), needs=equals("tea_kind", "black"))
    """Warmth of the water, for 100% of the pot."""
    sugar_cubes: int | None = setting(None, TASTE, within("[0, 4)"))
    """Cubes in each cup."""
    tea_stirred: bool = setting(True, TASTE, needs=differs("sugar_cubes", 0))
    """Stir each cup."""


TEA = settings_of({"tea": TeaConfig})
DEFAULTS = vars(TeaConfig())


def test_flags_of_a_declared_setting_are_read_and_misspelt_ones_are_known():
    words = "--tea-degrees 80 --no-tea-stirred --sugar-cube 2 --tea-kind red".split()
    found = read_flags(words, TEA)
    assert found.values == {"tea_degrees": 80.0, "tea_stirred": False}
    assert found.places == {"tea_degrees": "flag", "tea_stirred": "flag"}
    assert found.problems == [
        "unknown flag --sugar-cube - did you mean --sugar-cubes?",
        "invalid choice 'red' for argument '--tea-kind': use one of black, green",
    ]
    assert found.unread == {"sugar_cubes", "tea_kind"}


def test_a_file_has_its_section_and_its_type(tmp_path):
    file = tmp_path / "tea.yaml"
    file.write_text("tea:\n  sugar_cubes: two\n  tea-kind: green\ntea_degrees: 80\nmilk: 1\n")
    found = read_file(str(file), TEA)
    assert found.values == {"tea_kind": "green", "tea_degrees": 80.0}
    assert found.places == {"tea_kind": f"{file}:3", "tea_degrees": f"{file}:4"}
    assert found.problems == [
        f"{file}:2: sugar_cubes must be a whole number, not 'two'",
        f"{file}:5: unknown setting milk",
    ]
    assert found.unread == {"sugar_cubes"}


def test_a_later_source_replaces_what_an_earlier_one_says(tmp_path):
    file = tmp_path / "tea.yaml"
    file.write_text("sugar_cubes: two\ntea_degrees: 80\ntea_kind: red\n")
    both = read_file(str(file), TEA).then(read_flags(["--sugar-cubes", "2", "--tea-degrees"], TEA))
    assert both.values == {"sugar_cubes": 2, "tea_degrees": 80.0}
    assert both.places == {"sugar_cubes": "flag", "tea_degrees": f"{file}:2"}
    assert both.unread == {"tea_degrees", "tea_kind"}
    assert len(both.problems) == 3 and both.problems[-1] == "--tea-degrees needs a value"


def test_a_range_is_checked_with_its_words():
    ranges = {name: tea.interval for name, tea in TEA.items() if tea.interval is not None}
    values = DEFAULTS | {"tea_degrees": -1.0, "sugar_cubes": 4}
    assert out_of_range(values, ranges) == {
        "tea_degrees": "tea-degrees (-1.0) must be above 0",
        "sugar_cubes": "sugar-cubes (4) must be in [0, 4)",
    }
    assert out_of_range(DEFAULTS, ranges) == {}


@pytest.mark.parametrize(
    ("name", "flags", "metavar", "text", "short"),
    [
        (
            "tea_kind",
            ("--tea-kind",),
            "black|green",
            "Leaves in the pot. (default: black)",
            "Leaves in the pot. (default: black)",
        ),
        (
            "tea_degrees",
            ("--tea-degrees",),
            "FLOAT",
            "Warmth of the water, for 100% of the pot. "
            "(default: 95.0; above 0; no effect without tea-kind black)",
            "Warmth of the water, for 100% of the pot. (default: 95.0)",
        ),
        (
            "sugar_cubes",
            ("--sugar-cubes",),
            "INT",
            "Cubes in each cup. (in [0, 4))",
            "Cubes in each cup.",
        ),
        (
            "tea_stirred",
            ("--tea-stirred", "--no-tea-stirred"),
            None,
            "Stir each cup. (default: on; no effect with sugar-cubes 0)",
            "Stir each cup. (default: on)",
        ),
    ],
)
def test_help_has_flag_value_text_default_range_and_need(name, flags, metavar, text, short):
    meaning = help_texts(TeaConfig)[name]
    assert flag_help(TEA[name], meaning) == (flags, metavar, False, text)
    assert flag_help(TEA[name], meaning, short=True) == (flags[:1], metavar, False, short)


@pytest.mark.parametrize(
    ("values", "sentences"),
    [
        ({}, []),
        ({"tea_kind": "green"}, []),
        (
            {"tea_kind": "green", "tea_degrees": 70.0},
            ["tea-degrees has no effect without tea-kind black"],
        ),
        (
            {"tea_stirred": False, "sugar_cubes": 0},
            ["tea-stirred has no effect with sugar-cubes 0"],
        ),
        ({"tea_stirred": False, "sugar_cubes": 1}, []),
    ],
)
def test_a_setting_whose_need_is_not_met_is_noticed(values, sentences):
    assert without_effect(DEFAULTS | values, TEA) == sentences


def test_settings_with_one_need_share_a_sentence():
    off = {name: one.default for name, one in SETTINGS.items()}
    both = off | {"spiky_loss_factor": 9.0, "spiky_loss_window": 9}
    assert without_effect(both) == [
        "spiky-loss-factor and spiky-loss-window have no effect without check-for-spiky-loss"
    ]


def test_a_resume_follows_the_declared_rules():
    def verdict(**now):
        return compare_configs(Side(DEFAULTS), Side(DEFAULTS | now), 0, settings=TEA)

    assert verdict(tea_degrees=99.0) == ([], [])
    assert verdict(tea_degrees=90.0) == (
        ["tea-degrees was 95.0 and is now 90.0: the tea is colder"],
        [],
    )
    assert verdict(tea_stirred=False).refusals == [
        "tea-stirred was True and is now False: the tea tastes different; "
        "restore the former value, or resume anyway with --force-resume tea_stirred"
    ]
    lines = rules(TEA).splitlines()
    assert lines[lines.index("  the tea tastes different") + 1].split() == [
        "tea_kind",
        "sugar_cubes",
        "tea_stirred",
    ]
    assert "  the tea is colder (free if it is warmer)" in lines


def test_a_name_in_two_sections_is_refused():
    with pytest.raises(ValueError, match="tea_kind is in tea and supper"):
        settings_of({"tea": TeaConfig, "supper": TeaConfig})


def test_every_need_names_another_setting():
    for name, one in SETTINGS.items():
        if one.needs is None:
            continue
        assert one.needs.name in SETTINGS and one.needs.name != name
        assert one.needs.otherwise.startswith(("with ", "without "))


def test_every_default_has_the_declared_type_and_range():
    for one in SETTINGS.values():
        assert typed(one.default, one.hint) == one.default
        assert one.interval is None or one.default is None or one.default in one.interval


def test_every_setting_has_a_help_text():
    texts = [text for record in SECTIONS.values() for text in help_texts(record)]
    assert texts == list(SETTINGS)


NEW = '''
    tea_degrees: float = setting(95.0, NOTICE_STEPS, above(0), needs=equals("mock_data", True))
    """Warmth of the water."""
'''
ASKED = """
from megascratch.config.errors import SettingError
from megascratch.config.declare import help_texts
from megascratch.config.fields import SECTIONS, SETTINGS, flat
from megascratch.config.help import flag_help
from megascratch.config.laws import validate
from megascratch.config.load import format_config, load_config
from megascratch.config.notices import notices
from megascratch.config.resolve import resolve
from megascratch.config.resume_rules import rules

good = "--mock-data --vocab-size 61 --train-iters 3".split()
config, origins = load_config([*good, "--config", "tea.yaml"])
assert "  tea_degrees: 80.0 " in format_config(config, origins)
validate(flat(config), 1)
whole = resolve(config, 1)
assert whole.model.tea_degrees == 80.0 and notices(whole) == []
try:
    validate(flat(load_config([*good, "--tea-degrees", "0"])[0]), 1)
except SettingError as error:
    assert str(error) == "tea-degrees (0.0) must be above 0"
else:
    raise AssertionError("not refused")
assert "tea_degrees" in rules()
print(flag_help(SETTINGS["tea_degrees"], help_texts(SECTIONS["model"])["tea_degrees"]).text)
"""


def test_a_new_setting_of_the_package_is_one_declaration_in_one_file(tmp_path):
    """The package's settings with one more line, in a copy: everything but its use is there."""
    package = tmp_path / "megascratch"
    shutil.copytree(ROOT / "megascratch" / "config", package / "config")
    (package / "__init__.py").touch()
    declared = package / "config" / "model_settings.py"
    text = declared.read_text(encoding="utf-8")
    declared.write_text(text + NEW, encoding="utf-8")
    (tmp_path / "tea.yaml").write_text("model: {tea_degrees: 80}\n")
    done = subprocess.run(
        [sys.executable, "-c", ASKED],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Warmth of the water. (default: 95.0; above 0;")
