"""Flags of data and tokenizers mean what they mean in Megatron-LM: blends in files, FIM, tokenizers."""

import json

import pytest

from megascratch.config.load import read_config

BASE = "--num-layers 2 --hidden-size 48 --num-attention-heads 4 --use-mcore-models".split()


def data_of(*words):
    loaded = read_config([*BASE, *map(str, words)])
    return loaded.config.data, loaded.problems, loaded.origins


def test_the_words_of_a_file_are_the_data_path(tmp_path):
    (tmp_path / "blend").write_text("0.3 web\n0.7 books\n")
    data, problems, origins = data_of("--data-args-path", tmp_path / "blend")
    assert (data.data_path, problems) == (["0.3", "web", "0.7", "books"], [])
    assert origins.places["data_path"] == "megatron: the words of the file"


def test_a_file_may_hold_a_blend_for_each_split(tmp_path):
    blends = {"train": "1 web 2 books", "valid": ["0.5", "v"], "test": None}
    (tmp_path / "blends").write_text(json.dumps(blends))
    data, problems, _ = data_of("--per-split-data-args-path", tmp_path / "blends")
    assert problems == []
    assert data.train_data_path == ["1", "web", "2", "books"]
    assert (data.valid_data_path, data.test_data_path, data.data_path) == (["0.5", "v"], None, None)


@pytest.mark.parametrize(
    ("content", "more", "told"),
    [
        (None, [], "cannot be read: No such file"),
        ("{", [], "cannot be read: Expecting"),
        ('{"train": "a"}', [], "the keys train, valid and test"),
        ('{"train": 3, "valid": null, "test": null}', [], "train must be a list"),
        ('{"train": "a", "valid": null, "test": null}', ["--data-path", "b"], "both name data"),
    ],
)
def test_a_file_that_is_no_blend_is_refused_by_name(tmp_path, content, more, told):
    if content is not None:
        (tmp_path / "f").write_text(content)
    _, problems, _ = data_of("--per-split-data-args-path", tmp_path / "f", *more)
    assert len(problems) == 1
    assert "--per-split-data-args-path" in problems[0] and told in problems[0]


@pytest.mark.parametrize(
    ("flags", "setting", "value"),
    [
        ("--fim-rate 0.3 --fim-prefix-token <p>", "fim_rate", 0.0),
        ("--fim-rate 0.3 --fim-prefix-token <p>", "fim_prefix_token", None),
        ("--fim-data", "fim_rate", 0.5),
        ("--fim-data", "fim_suffix_token", "<fim_suffix>"),
        ("--fim-data --fim-rate 0.3 --fim-prefix-token <p>", "fim_prefix_token", "<p>"),
        ("--vocab-file v --merge-file m", "vocab_file", "v"),
        ("--tokenizer-type GPT2BPETokenizer --vocab-file v --merge-file m", "merge_file", "m"),
        ("--tokenizer-type NullTokenizer --vocab-file v --merge-file m", "vocab_file", None),
        ("--tokenizer-type TikTokenizer --tiktoken-pattern v1", "tiktoken_pattern", "v1"),
        ("--null-tokenizer-eod-id 7 --null-tokenizer-pad-id -1", "null_tokenizer_eod_id", 7),
    ],
)
def test_a_flag_that_megatron_ignores_because_of_others_is_ignored_and_named(flags, setting, value):
    data, problems, origins = data_of(*flags.split())
    assert problems == []
    assert getattr(data, setting) == value
    if value in (None, 0.0):
        flag = f"--{setting.replace('_', '-')}"
        assert any("no effect" in notice and flag in notice for notice in origins.notices)
