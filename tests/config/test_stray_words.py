"""Words, numbers and files as other tools have them: refused with what to write, and nothing else is judged."""

import pytest

from megascratch.config.errors import UserError
from megascratch.config.fields import SETTINGS, flag, flat
from megascratch.config.load import load_config, read_config
from megascratch.config.settings import Config


@pytest.fixture
def yaml(tmp_path):
    """Write a settings file, get its name."""

    def write(text: str) -> str:
        file = tmp_path / "c.yaml"
        file.write_text(text, encoding="utf-8")
        return str(file)

    return write


STRAY = [
    (["{file}"], ["{file}: to read settings from it, write --config {file}"]),
    (["llama3-8b"], ["llama3-8b: to read settings from it, write --config llama3-8b"]),
    (["lr=1e-2"], ["lr=1e-2: write --lr 1e-2"]),
    (["--config", "{file}", "lr=1e-2"], ["lr=1e-2: write --lr 1e-2"]),
    (["--bf16", "+model.num-layers=4"], ["+model.num-layers=4: write --num-layers 4"]),
    (["--lr", "1", "swiglu=true"], ["swiglu=true: write --swiglu"]),
    (["--lr", "1", "swiglu=False"], ["swiglu=False: write --no-swiglu"]),
    (["n_layer=4"], ["unknown setting n_layer=4 - did you mean --num-layers?"]),
    (["a", "b=2", "c"], ["unrecognized arguments: a b=2 c: put the flag in front of each value"]),
    (
        [f"{name}=1" for name in ("lr", "min_lr", "seed", "save", "load", "split")],
        [
            "lr=1: write --lr 1",
            "min_lr=1: write --min-lr 1",
            "seed=1: write --seed 1",
            "save=1: write --save 1",
            "and 2 more words without a flag",
        ],
    ),
]


@pytest.mark.parametrize(("argv", "complaints"), STRAY)
def test_words_without_a_flag_are_told_how_to_be_written_and_nothing_else_is_judged(
    yaml, argv, complaints
):
    file = yaml("num_layers: 4")
    loaded = read_config([word.format(file=file) for word in argv])
    assert loaded.problems == [complaint.format(file=file) for complaint in complaints]
    assert set(SETTINGS) <= loaded.unread


@pytest.mark.parametrize(
    ("argv", "values"),
    [
        (["--output-dir", "lr=1"], {"output_dir": "lr=1"}),
        (["--save=a=b"], {"save": "a=b"}),
        (["--lr", "-1e-3"], {"lr": -1e-3}),
        (["--clip-grad", "-inf"], {"clip_grad": float("-inf")}),
        (["--train-iters", "1e3", "--seed", "2.0"], {"train_iters": 1000, "seed": 2}),
    ],
)
def test_what_looks_like_another_tools_setting_may_be_a_value(argv, values):
    given, default = flat(load_config(argv)[0]), flat(Config())
    assert {name: value for name, value in given.items() if value != default[name]} == values


NUMBERS = [
    ("num_layers", "two", "a whole number, not 'two'"),
    ("num_layers", "", "a whole number, not ''"),
    ("num_layers", "2k", "a whole number, not '2k' (write 2000)"),
    ("num_layers", "1.5M", "a whole number, not '1.5M' (write 1500000)"),
    ("num_layers", "1,000", "a whole number, not '1,000' (write 1000)"),
    ("hidden_dropout", "10%", "a number, not '10%' (write 0.1)"),
    ("hidden_dropout", "small", "a number, not 'small'"),
]


@pytest.mark.parametrize(("name", "word", "complaint"), NUMBERS)
def test_a_word_that_is_not_the_number_is_told_with_the_number_that_it_means(
    yaml, name, word, complaint
):
    assert read_config([flag(name), word]).problems == [f"{flag(name)} must be {complaint}"]
    file = yaml(f"{name}: '{word}'")
    assert read_config(["--config", file]).problems == [f"{file}:1: {name} must be {complaint}"]


@pytest.mark.parametrize(
    ("word", "complaint"), [("1.5", "1.5 (use 1 or 2)"), ("nan", "nan"), ("9e99", "9e+99")]
)
def test_only_a_number_without_a_fraction_is_a_whole_number(word, complaint):
    problems = read_config(["--num-layers", word]).problems
    assert problems == [f"--num-layers must be a whole number, not {complaint}"]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("optimizer: {lr: 1, n_layer: 2, beta1: 3}", "no section optimizer: its settings belong"),
        ("train:\n  max_iters: 5", "no section train: its settings belong to section training"),
        ("foo: {bar: 1}", ":1: unknown setting foo"),
        ('{"model_type": "llama", "num_hidden_layers": 2}', "a model of Hugging Face transformers"),
        ("architectures: [LlamaForCausalLM]", "its weights cannot be imported yet"),
    ],
)
def test_a_file_of_another_tool_is_said_to_be_one(yaml, text, complaint):
    with pytest.raises(UserError) as error:
        load_config(["--config", yaml(text)])
    assert complaint in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["", "# nothing", "model:\n"])
def test_a_file_without_settings_is_legal_and_said_to_have_none(yaml, text):
    config, origins = load_config(["--config", yaml(text)])
    assert config == Config()
    assert [notice.split(" has ")[1] for notice in origins.notices] == ["no settings"]
