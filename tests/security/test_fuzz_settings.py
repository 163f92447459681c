"""Whatever stands in a settings file: settings, or a refusal in a few printable lines; never a traceback."""

import random

import pytest

from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.laws import broken_laws
from megascratch.config.load import format_config, load_config, read_config
from megascratch.config.resolve import derive
from megascratch.config.settings import Config
from tests.support.file_mutations import damaged, random_yaml

GOOD = ["--mock-data", "--vocab-size", "61", "--train-iters", "3"]
MOST_LENGTH = 2000


def judge(text: bytes, file) -> None:
    """Reads and judges a settings file as `megascratch pretrain` does."""
    file.write_bytes(text)
    try:
        loaded = read_config([*GOOD, "--config", str(file)])
        derived = derive(flat(loaded.config), 4)
        told = [*loaded.problems, *broken_laws(derived, derived, 4, loaded.unread)]
        format_config(loaded.config, loaded.origins, derived)
    except UserError as error:
        told = str(error).split("\n")
    for line in told:
        assert line.isprintable() and len(line) <= MOST_LENGTH, (text, line)


@pytest.mark.parametrize("part", range(2))
def test_random_settings_files_are_read_or_refused_in_printable_lines(tmp_path, part):
    _judge_random_files(tmp_path / "c.yaml", range(part * 150, (part + 1) * 150))


@pytest.mark.deep
@pytest.mark.parametrize("part", range(10))
def test_many_random_settings_files_are_read_or_refused_in_printable_lines(tmp_path, part):
    _judge_random_files(tmp_path / "c.yaml", range(1000 * (part + 1), 1000 * (part + 2)))


def _judge_random_files(file, seeds: range) -> None:
    for seed in seeds:
        dice = random.Random(seed)
        text = random_yaml(dice).encode("utf-8", "surrogatepass")
        judge(damaged(text, dice) if dice.random() < 0.2 else text, file)


REFUSED = [
    ("lr: 2001-99-99", ":1: lr must be a number, not 2001-99-99"),
    ("lr: 2001-01-01", ":1: lr must be a number, not 2001-01-01"),
    ("output_dir: 2001-01-01", ":1: output_dir must be text (in quotes), not 2001-01-01"),
    ("seed: !!int x", ":1: seed must be a whole number, not x"),
    ("bf16: !!bool maybe", ":1: bf16 must be true or false, not maybe"),
    ("lr: !!float x", ":1: lr must be a number, not x"),
    ("seed: " + "9" * 5000, ":1: seed must be a whole number, not a number of 5,000 digits"),
    ("seed: 9223372036854775808", ":1: seed must be a number of at most 64 bits"),
    ("lr: " + "9" * 80, ":1: lr must be a number of at most 64 bits"),
    ("num_layers: 017", ":1: num_layers must be a whole number, not 017"),
    ("lr: 1:30", ":1: lr must be a number, not '1:30'"),
    ("? [a, b]\n: 1", ":1: a list cannot be the name of a setting"),
    ("2: 1", ":1: unknown setting 2"),
    ('"l\\x1b[31mr": 1', ":1: unknown setting l\\x1b[31mr"),
    ('"lr: 1\\nseed": 1', ":1: unknown setting lr: 1\\nseed"),
    ('output_dir: "a\\0b"', ":1: output_dir must be text without NUL characters"),
    ('output_dir: "\\uD800"', ":1: output_dir must be text without NUL characters"),
    ('lr: "\\UFFFFFFFF"', "not YAML"),
    ("lr: 1\nseed: \x01", ":2: character U+0001 is not allowed in YAML"),
    ("lr: 1\n---\nlr: 2", "expected a single document"),
    ("<<: 3", ":1: << needs a mapping, like <<: *base, not a value"),
    ("optim: &o\n  lr: 1\n  <<: *o", "into itself"),
    ("base: &b {lr: 1}", ":1: there is no section base: its settings belong to section optim"),
    ("base: &b {lrr: 1}\n<<: *b", ":1: unknown setting lrr - did you mean lr?"),
]


@pytest.mark.parametrize(("text", "complaint"), REFUSED)
def test_what_is_no_setting_is_refused_with_its_line(tmp_path, text, complaint):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as error:
        load_config(["--config", str(file)])
    assert str(error.value).startswith(str(file)) or str(error.value).startswith("config file")
    assert complaint in str(error.value) and len(str(error.value).split("\n")) == 1


def test_a_file_of_a_thousand_mistakes_tells_the_first_and_a_count(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("\n".join(f"x{number}: 1" for number in range(1000)))
    with pytest.raises(UserError) as error:
        load_config(["--config", str(file)])
    lines = str(error.value).split("\n")
    assert len(lines) == 5 and lines[-1] == f"{file}: and 996 more problems"


MERGED = [
    (
        "base: &base {lr: 0.5, min_lr: 0.25}\noptim:\n  <<: *base\n  lr: 1.0",
        {"lr": 1.0, "min_lr": 0.25},
    ),
    ("base: &base {lr: 0.5, seed: 7}\n<<: *base\nseed: 8", {"lr": 0.5, "seed": 8}),
    (
        "a: &a {lr: 1.0}\nb: &b {lr: 2.0, min_lr: 0.5}\noptim: {<<: [*a, *b]}",
        {"lr": 1.0, "min_lr": 0.5},
    ),
    ("a: &a {lr: 1.0}\nb: &b {<<: *a, min_lr: 0.5}\noptim: {<<: *b}", {"lr": 1.0, "min_lr": 0.5}),
    (
        "base: &base\n  optim: {lr: 1.0}\n  training: {seed: 7}\n<<: *base\ntraining: {seed: 8}",
        {"lr": 1.0, "seed": 8},
    ),
    ("optim: {<<: {lr: 1.0}, min_lr: 0.5}", {"lr": 1.0, "min_lr": 0.5}),
]


@pytest.mark.parametrize(("text", "values"), MERGED)
def test_merge_keys_bring_in_what_the_mapping_does_not_say_itself(tmp_path, text, values):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    config = load_config(["--config", str(file)])[0]
    found = {"lr": config.optim.lr, "min_lr": config.optim.min_lr, "seed": config.training.seed}
    defaults = {
        "lr": Config().optim.lr,
        "min_lr": Config().optim.min_lr,
        "seed": Config().training.seed,
    }
    assert found == defaults | values


def test_a_merged_setting_is_known_by_the_line_of_the_base(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("base: &base\n  lr: x\noptim:\n  <<: *base")
    with pytest.raises(UserError, match=r":2: lr must be a number, not 'x'"):
        load_config(["--config", str(file)])


@pytest.mark.parametrize("leaf", ["{lr: 1}", "{}"])
def test_merges_that_multiply_are_refused_before_they_fill_the_memory(tmp_path, leaf):
    lines = [f"a0: &a0 {leaf}"]
    for deep in range(1, 12):
        lines.append(f"a{deep}: &a{deep} {{<<: [{', '.join([f'*a{deep - 1}'] * 9)}]}}")
    file = tmp_path / "c.yaml"
    file.write_text("\n".join([*lines, "<<: *a11"]))
    with pytest.raises(UserError, match="merge keys add more than 10,000 settings"):
        load_config(["--config", str(file)])
