"""The laws of reading settings: file over defaults, flags over file, each with its origin; no typo survives."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.config.errors import UserError
from megascratch.config.fields import SETTINGS, flat, with_fields
from megascratch.config.load import format_config, load_config, print_notices
from megascratch.config.resolve import derive
from megascratch.config.settings import Config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def yaml(tmp_path):
    """Write a settings file, get its name."""

    def write(text: str, name: str = "c.yaml") -> str:
        file = tmp_path / name
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write


def load(*argv: str) -> Config:
    return load_config(argv)[0]


def changed(config: Config) -> dict:
    default = flat(Config())
    return {name: value for name, value in flat(config).items() if value != default[name]}


def test_nothing_given_is_every_default():
    assert load_config([])[0] == Config()


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["--tensor-model-parallel-size", "2"], {"tensor_model_parallel_size": 2}),
        (["--tensor_model_parallel_size=2"], {"tensor_model_parallel_size": 2}),
        (
            ["--sequence-parallel", "--no-overlap-grad-reduce"],
            {"sequence_parallel": True, "overlap_grad_reduce": False},
        ),
        (
            ["--data-path", "0.3", "a", "0.7", "b", "--lr", "1"],
            {"data_path": ["0.3", "a", "0.7", "b"], "lr": 1.0},
        ),
        (["--rampup-batch-size", "2", "2", "100"], {"rampup_batch_size": [2, 2, 100]}),
        (["--pipeline-schedule", "gpipe"], {"pipeline_schedule": "gpipe"}),
        (["--lr", "1e-5", "--num-query-groups", "3"], {"lr": 1e-5, "num_query_groups": 3}),
    ],
)
def test_flags_set_their_settings(argv, values):
    assert changed(load(*argv)) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("", {}),
        ("# only a comment\n", {}),
        ("lr: 1e-4", {"lr": 1e-4}),
        ("lr: 1", {"lr": 1.0}),
        ("tensor-model-parallel-size: 2", {"tensor_model_parallel_size": 2}),
        (
            "parallel: {tensor_model_parallel_size: 2}\nlr: 1.",
            {"tensor_model_parallel_size": 2, "lr": 1.0},
        ),
        ("parallel:\ndata:\n  split: 9,1,0\n", {"split": "9,1,0"}),
        ("data_path: [0.3, a, 0.7, 'b c']", {"data_path": ["0.3", "a", "0.7", "b c"]}),
        ("rampup_batch_size: [2, 2, 1_000]", {"rampup_batch_size": [2, 2, 1000]}),
        ("num_query_groups: null\nbf16: true", {"bf16": True}),
        ("pipeline_schedule: 1f1b", {"pipeline_schedule": "1f1b"}),
        ("output_dir: läufe", {"output_dir": "läufe"}),
    ],
)
def test_a_file_is_flat_or_sectioned_and_its_values_are_plain(yaml, text, values):
    found = changed(load("--config", yaml(text)))
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


BAD_FILES = [
    ("lr: abc", ":1: lr must be a number, not 'abc'"),
    ("\nlr: true", ":2: lr must be a number, not True"),
    ("lr:", ":1: lr must be a number, not None"),
    ("num_layers: 2.5", ":1: num_layers must be a whole number, not 2.5"),
    ("num_layers: true", ":1: num_layers must be a whole number, not True"),
    ("bf16: 1", ":1: bf16 must be true or false, not 1"),
    ("bf16: yes", ":1: bf16 must be true or false, not 'yes'"),
    ("split: 949", ":1: split must be text (in quotes), not 949"),
    ("data_path: a", ":1: data_path must be a list of texts like [a, b], not 'a'"),
    (
        "rampup_batch_size: [1, x]",
        ":1: rampup_batch_size must be a list of whole numbers, not [1, 'x']",
    ),
    (
        "pipeline_schedule: 2f2b",
        ":1: pipeline_schedule must be one of gpipe, 1f1b, interleaved, zb_h1, zb_h2, zb_v, "
        "dualpipe_v, csv, or give --import with the file that registers it, not '2f2b'",
    ),
    ("model:\n  num_layer: 2", ":2: unknown setting num_layer - did you mean num_layers?"),
    ("modell: {}", ":1: unknown setting modell - did you mean model?"),
    ("xyzzy: 2", ":1: unknown setting xyzzy"),
    ("model:\n  lr: 2", ":2: lr is in section model but belongs to section optim"),
    ("model: 3", ":1: section model must contain `setting: value` lines"),
    ("lr: 1\nlr: 2", ':2: found duplicate key "lr"'),
    ("optim:\n  lr: 1\n  lr: 2", ':3: found duplicate key "lr"'),
    ("lr: 1\noptim: {lr: 2}", ":2: lr is given a second time (first at "),
    ("num-layers: 1\nnum_layers: 2", ":2: num_layers is given a second time"),
    ("lr: [1", ":1: expected ',' or ']'"),
    ("- lr", "a config file must contain `setting: value` lines"),
    ("lr: &x 1\nmin_lr: *y", ":2: found undefined alias"),
    ("lr: !!python/object/apply:os.getcwd []", ":1: lr must be a number"),
]


@pytest.mark.parametrize(("text", "complaint"), BAD_FILES)
def test_a_mistake_in_the_file_is_named_with_its_line(yaml, text, complaint):
    file = yaml(text)
    with pytest.raises(UserError) as error:
        load("--config", file)
    assert complaint in str(error.value)
    assert str(error.value).startswith(file) or not complaint.startswith(":")


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"output_dir: l\xe4ufe")
    for file, complaint in [
        (str(tmp_path / "none.yaml"), "there is no such file"),
        (str(tmp_path), "is a folder: give a file in it, like latin.yaml"),
        (str(latin), "not UTF-8"),
    ]:
        with pytest.raises(UserError, match=complaint):
            load("--config", file)


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["--nm-layers", "3"], "unknown flag --nm-layers - did you mean --num-layers?"),
        (
            ["--model.num-layers", "3"],
            "unknown flag --model.num-layers - did you mean --num-layers?",
        ),
        (["--no-overlap-grad-reduc"], "- did you mean --no-overlap-grad-reduce?"),
        (["--xyzzy"], "unknown flag --xyzzy"),
        (["--lr", "abc"], "--lr must be a number, not 'abc'"),
        (["--train-iters", "1.5"], "1.5"),
        (["--lr"], "--lr needs a value"),
        (["--config"], "--config needs a value"),
        (["--lr", "1", "extra"], "extra"),
        (
            ["--pipeline-schedule", "2f2b"],
            "invalid choice '2f2b' for argument '--pipeline-schedule'",
        ),
        (["--no-lr", "2"], "--no-lr"),
        (["--bf16", "true"], "true"),
    ],
)
def test_a_mistake_in_the_flags_is_named(argv, complaint):
    with pytest.raises(UserError) as error:
        load(*argv)
    assert complaint in str(error.value)
    assert "│" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "values", "notices"),
    [
        (["--lr", "1", "--lr=2"], {"lr": 2.0}, ["--lr 2 replaces --lr 1"]),
        (["--lr", "x", "--lr", "2"], {"lr": 2.0}, ["--lr 2 replaces --lr x"]),
        (["--lr", "2", "--lr", "2"], {"lr": 2.0}, []),
        (["--bf16", "--bf16"], {"bf16": True}, []),
        (["--bf16", "--no-bf16"], {}, ["--no-bf16 replaces --bf16"]),
        (
            ["--data-path", "a", "b", "--seed", "1", "--data-path", "c"],
            {"data_path": ["c"], "seed": 1},
            ["--data-path c replaces --data-path a b"],
        ),
        (
            ["--seed", "1", "--seed", "2", "--seed", "3"],
            {"seed": 3},
            ["--seed 3 replaces --seed 1, --seed 2"],
        ),
    ],
)
def test_the_last_of_several_equal_flags_is_used_and_named_with_those_that_it_replaces(
    argv, values, notices
):
    config, origins = load_config(argv)
    assert changed(config) == values
    assert [notice.split(":")[0] for notice in origins.notices] == notices


def test_only_the_first_rank_prints_notices(monkeypatch, capsys):
    origins = load_config(["--lr", "1", "--lr", "2"])[1]
    monkeypatch.setenv("RANK", "1")
    print_notices(origins)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    print_notices(origins)
    assert capsys.readouterr().err.startswith("notice: --lr 2 replaces --lr 1")


def test_all_mistakes_of_file_and_flags_are_listed_at_once(yaml):
    file = yaml("lr: abc\nnum_layer: 3\n")
    with pytest.raises(UserError) as error:
        load("--config", file, "--nm-layers", "3", "--xyzzy")
    assert [line.removeprefix(file).split(" - ")[0] for line in str(error.value).splitlines()] == [
        ":1: lr must be a number, not 'abc'",
        ":2: unknown setting num_layer",
        "unknown flag --nm-layers",
        "unknown flag --xyzzy",
    ]


def test_each_value_tells_where_it_comes_from(yaml):
    file = yaml("lr: 1e-3\noptim:\n  min_lr: 1e-4\nnum_layers: 2")
    base = with_fields(Config(), {"seed": 7, "num_layers": 3})
    config, origins = load_config(
        [f"--config={file}", "--lr", "2e-3", "--no-overlap-grad-reduce"], base
    )
    assert (
        config.optim.lr,
        config.optim.min_lr,
        config.model.num_layers,
        config.training.seed,
    ) == (2e-3, 1e-4, 2, 7)
    assert origins.places == {
        "lr": "flag",
        "min_lr": f"{file}:3",
        "num_layers": f"{file}:4",
        "seed": "base",
        "overlap_grad_reduce": "flag",
    }


def test_print_config_is_yaml_with_origins_that_reads_back_as_the_same_config(yaml):
    config, origins = load_config(
        [
            "--config",
            yaml("lr: 1e-5\ntrain_iters: 5"),
            "--data-path",
            "0.3",
            "a b",
            "--print-config",
        ]
    )
    assert origins.print_config
    text = format_config(config, origins, derive(flat(config), 4))
    assert load("--config", yaml(text, "printed.yaml")) == config
    assert "  lr: 1.0e-05 " in text  # YAML 1.1 readers take 1e-05 for a word
    comment = {
        line.split(":")[0].strip(" #"): line.split(" # ")[-1]
        for line in text.splitlines()
        if " # " in line
    }
    derived = [name for name, origin in comment.items() if origin == "derived"]
    assert all(f"  # {name}: " in text for name in derived) and "train_iters" not in derived
    assert list(comment) == list(SETTINGS)
    assert [
        comment[name].split("/")[-1]
        for name in ("lr", "data_path", "data_parallel_size", "min_lr", "device")
    ] == [
        "c.yaml:1",
        "flag",
        "derived",
        "default",
        "default",
    ]


@given(st.floats(allow_nan=False, allow_infinity=False))
@settings(max_examples=20, deadline=None)
def test_every_number_survives_printing(number):
    assert (
        load_back(format_config(with_fields(Config(), {"lr": number}), load_config([])[1])).optim.lr
        == number
    )


def load_back(text: str) -> Config:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        file.write_text(text)
        return load("--config", str(file))


@pytest.mark.parametrize(
    ("file", "flags", "values", "replaced"),
    [
        ("data_path: [a]\nsplit: 9,1,0", ["--mock-data"], {"mock_data": True}, "data_path split"),
        (
            "train_data_path: [a]\nvalid_data_path: [b]",
            ["--data-path", "c"],
            {"data_path": ["c"]},
            "train_data_path valid_data_path",
        ),
        ("mock_data: true", ["--train-data-path", "c"], {"train_data_path": ["c"]}, "mock_data"),
        ("train_iters: 5", ["--train-samples", "7"], {"train_samples": 7}, "train_iters"),
        ("train_samples: 7", ["--train-iters", "5"], {"train_iters": 5}, "train_samples"),
        ("data_path: [a]", ["--no-mock-data"], {"data_path": ["a"]}, ""),
        ("data_path: [a]\nmock_data: true", [], {"data_path": ["a"], "mock_data": True}, ""),
    ],
)
def test_a_later_choice_of_data_or_length_replaces_the_earlier_one_with_a_notice(
    yaml, file, flags, values, replaced
):
    config, origins = load_config(["--config", yaml(file), *flags])
    assert changed(config) == values
    assert [notice.split(" replaces ")[1].split(" ")[0] for notice in origins.notices] == (
        replaced.split()
    )
    assert set(origins.places) == set(values) | (
        {"mock_data"} if "--no-mock-data" in flags else set()
    )


def test_problems_and_origins_of_several_files_name_the_file_that_they_are_in(yaml):
    first = yaml("model:\n  num_layers: 2\noptim:\n  lr: 1.0\n  min_lr: 0.5", "first.yaml")
    second = yaml("optim: {lr: 2.0}\nnum_layers: 3", "second.yaml")
    config, origins = load_config(["--config", first, "--seed", "4", "--config", second])
    assert changed(config) == {"num_layers": 3, "lr": 2.0, "min_lr": 0.5, "seed": 4}
    assert origins.places == {
        "num_layers": f"{second}:2",
        "lr": f"{second}:1",
        "min_lr": f"{first}:5",
        "seed": "flag",
    }
    wrong = yaml("lr: 1\nlr_decay_style: x", "wrong.yaml")
    also = yaml("\nmin_lr: y", "also.yaml")
    with pytest.raises(UserError) as error:
        load("--config", wrong, also, "--seed", "z")
    places = [line.split(" ")[0] for line in str(error.value).splitlines()]
    assert places == [f"{wrong}:2:", f"{also}:2:", "--seed"]


def test_names_are_unique_across_the_sections():
    assert len(SETTINGS) == sum(
        len(dataclasses.fields(getattr(Config(), section))) for section in vars(Config())
    )


def test_reading_settings_loads_no_torch():
    code = (
        "import sys; from megascratch.config.load import load_config;"
        "load_config(['--lr', '1']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "False\n"
