"""The presets: configs of known models that run as they are, under names that `--config` and `init` understand."""

import json
import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from megascratch.commands import main
from megascratch.commands.parsers.pretrain import parser
from megascratch.commands.pretrain import start_of
from megascratch.config.errors import SettingError
from megascratch.config.fields import flat
from megascratch.config.laws import broken_laws
from megascratch.config.load import load_config
from megascratch.config.presets import FOLDER, find_config, preset_names, preset_text
from megascratch.config.resolve import derive

ROOT = Path(__file__).resolve().parents[2]

# name -> layers, width, heads, key/value heads, width of the MLP, vocabulary, sequence, learning rate: as published,
# see the sources in each file; llama-10m is our own
SHAPES = {
    "nanogpt-char": (4, 128, 4, 4, 512, None, 64, 1e-3),
    "llama-10m": (8, 256, 4, 2, 768, 8192, 256, 2e-3),
    "gpt2-124m": (12, 768, 12, 12, 3072, 50257, 1024, 6e-4),
    "gpt2-355m": (24, 1024, 16, 16, 4096, 50257, 1024, 3e-4),
    "gpt2-774m": (36, 1280, 20, 20, 5120, 50257, 1024, 2.5e-4),
    "gpt2-1.5b": (48, 1600, 25, 25, 6400, 50257, 1024, 2e-4),
    "gpt3-175b": (96, 12288, 96, 96, 49152, 50257, 2048, 6e-5),
    "llama3-8b": (32, 4096, 32, 8, 14336, 128256, 8192, 3e-4),
    "llama3-70b": (80, 8192, 64, 8, 28672, 128256, 8192, 1.5e-4),
    "llama3-405b": (126, 16384, 128, 8, 53248, 128256, 8192, 8e-5),
    "mistral-7b": (32, 4096, 32, 8, 14336, 32000, 4096, 3e-4),
    "llama3.1-8b": (32, 4096, 32, 8, 14336, 128256, 16384, 3e-4),
    "qwen3-8b": (36, 4096, 32, 8, 12288, 151936, 4096, 3e-4),
    "gemma3-4b": (34, 2560, 8, 4, 10240, 262208, 32768, 3e-4),
    "olmo3-7b": (32, 4096, 32, 32, 11008, 100278, 8192, 3e-4),
}
COPY = {"llama3-70b": 32, "llama3-405b": 128, "gpt3-175b": 128}
COPY |= dict.fromkeys(
    ("llama3-8b", "mistral-7b", "llama3.1-8b", "qwen3-8b", "gemma3-4b", "olmo3-7b"), 8
)
"""Preset -> ranks of one copy of the model, where it is more than one."""


def settings_of(name: str, world: int) -> dict:
    return derive(flat(load_config(["--config", name])[0]), world)


def test_every_preset_is_in_the_table_of_this_test():
    assert preset_names() == sorted(SHAPES)


@pytest.mark.parametrize("name", SHAPES)
def test_a_preset_has_the_published_shape_and_breaks_no_law_on_one_and_on_several_copies(name):
    ranks = COPY.get(name, 1)
    for copies in (1, 2, 8):
        given = flat(load_config(["--config", name])[0])
        found = settings_of(name, ranks * copies)
        if found["global_batch_size"] % (found["micro_batch_size"] * copies) == 0:
            assert broken_laws(given, found, ranks * copies, set()) == []
    parts = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups")
    rest = ("ffn_hidden_size", "vocab_size", "seq_length", "lr")
    assert tuple(found[part] for part in parts + rest) == SHAPES[name]


@pytest.mark.parametrize("name", SHAPES)
def test_the_comment_of_a_preset_names_data_output_and_a_start_that_its_settings_have(name):
    """The commands at the top write what the settings below them read."""
    text = preset_text(name)
    found = settings_of(name, COPY.get(name, 1))
    head = text.split("\nmodel:")[0].replace("\\\n#", "")
    commands = [line.split() for line in re.findall(r"#   megascratch (.*)", head)]
    by_verb = {words[0]: words[1:] for words in commands}
    options = dict(zip(by_verb["preprocess"], by_verb["preprocess"][1:], strict=False))
    assert found["data_path"] == [f"{options['--output-prefix']}_text_document"]
    assert found["tokenizer_model"] == options["--tokenizer-model"]
    assert by_verb.get("init", [name]) == [name]
    start = start_of(parser().read(by_verb["pretrain"]))
    assert start.words == ["--config", f"{name}.yaml" if "init" in by_verb else name]
    assert (start.world or 1) % COPY.get(name, 1) == 0
    if "generate" in by_verb:
        assert by_verb["generate"][:2] == ["--load", found["output_dir"]]
    assert text.startswith(f"# {name}: ") and all(len(line) <= 120 for line in text.splitlines())


def test_the_presets_are_data_of_the_package():
    data = re.search(
        r"^megascratch = (\[.*\])$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    for name in preset_names():
        file = str((FOLDER / f"{name}.yaml").relative_to(FOLDER.parent))
        assert any(fnmatch(file, pattern) for pattern in json.loads(data[1]))


@pytest.mark.parametrize("output", [None, "mine.yaml", "with space.yaml"])
def test_init_writes_the_preset_with_the_name_of_its_file_and_never_over_a_file(
    tmp_path, monkeypatch, capsys, output
):
    monkeypatch.chdir(tmp_path)
    words = ["init", "llama-10m", *(["--output", output] if output else [])]
    assert main(words) == 0
    file = tmp_path / (output or "llama-10m.yaml")
    assert load_config(["--config", str(file)])[0] == load_config(["--config", "llama-10m"])[0]
    named = {None: "llama-10m.yaml", "with space.yaml": "'with space.yaml'"}.get(output, output)
    assert f"megascratch pretrain --config {named} --nproc-per-node 2\n" in file.read_text()
    file.write_text("mine")
    capsys.readouterr()
    assert main(words) == 2
    assert "exists and is not replaced" in capsys.readouterr().err
    assert file.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


def test_init_lists_every_preset_with_its_parameters(capsys):
    assert main(["init"]) == 0
    said = capsys.readouterr().out
    for name in SHAPES:
        assert re.search(rf"^  {name} .* [\d,]+ parameters", said, flags=re.MULTILINE), name
    assert said.index("nanogpt-char") < said.index("gpt2-355m") < said.index("llama3-405b")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (
            ["llama3_8b"],
            "there is no preset llama3_8b - did you mean llama3-8b?; presets: gemma3-4b, gpt2-",
        ),
        (["xyzzy"], "there is no preset xyzzy; presets: gemma3-4b, gpt2-1.5b"),
        (["../presets/gpt2-124m"], "there is no preset"),
        (["--output", "a.yaml"], "--output a.yaml needs a preset"),
        (["gpt2-124m", "--output", "no/a.yaml"], "cannot be written: there is no folder no"),
        (["gpt2-124m", "--output", "."], ". exists and is not replaced"),
    ],
)
def test_init_refuses_what_it_cannot_write(tmp_path, monkeypatch, capsys, words, complaint):
    monkeypatch.chdir(tmp_path)
    assert main(["init", *words]) == 2
    said = capsys.readouterr()
    assert complaint in said.err and said.out == "" and len(said.err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_name_of_a_preset_is_read_instead_of_it_and_said_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2-355m").mkdir()  # a folder is not a config
    (tmp_path / "gpt2-124m").write_text("lr: 7.0\n")
    config, origins = load_config(["--config", "gpt2-124m"])
    assert config.optim.lr == 7.0 and config.model.vocab_size is None
    assert origins.notices == ["--config gpt2-124m is the file of this name here, not the preset"]
    config, origins = load_config(["--config", "gpt2-355m"])
    assert config.model.num_layers == 24 and origins.notices == []


def test_a_value_of_a_preset_is_told_by_preset_and_line():
    _, origins = load_config(["--config", "gpt2-124m", "--lr", "1"])
    line = preset_text("gpt2-124m").splitlines().index("  num_layers: 12") + 1
    assert origins.places["num_layers"] == f"preset gpt2-124m:{line}"
    assert origins.places["lr"] == "flag"


@pytest.mark.parametrize(
    ("word", "complaint"),
    [
        ("llama3-8B", "config file llama3-8B: there is no such file - did you mean llama3-8b?"),
        ("lama3-8b", "did you mean llama3-8b?"),
        ("gpt2_124m", "did you mean gpt2-124m?"),
        ("char.yml", "config file char.yml: there is no such file - did you mean char.yaml?"),
        ("nothing.yaml", "config file nothing.yaml: there is no such file"),
        ("other/char.yaml", "config file other/char.yaml: there is no such file"),
    ],
)
def test_a_name_that_is_neither_file_nor_preset_is_refused_with_the_most_similar(
    tmp_path, monkeypatch, word, complaint
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "char.yaml").touch()
    with pytest.raises(SettingError) as error:
        find_config(word)
    assert str(error.value).endswith(complaint)
