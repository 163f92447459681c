"""`tools/preprocess_data.py` and `tools/merge_datasets.py` read the flags of Megatron-LM's scripts of these names."""

import json
import runpy
from pathlib import Path

import pytest

from megascratch.commands import call, main
from megascratch.config.errors import UserError
from megascratch.data.tokens.token_files import TokenReader

ROOT = Path(__file__).parents[2]
BYTES = ["--tokenizer-type", "ByteTokenizer"]
IDS = ["--tokenizer-type", "NullTokenizer", "--vocab-size", "100"]
WITHOUT_EFFECT = [
    ["--padded-vocab-size", "128"],
    ["--no-pad-vocab-size"],
    ["--vocab-extra-ids", "0"],
    ["--tokenizer-hf-no-use-fast"],
    ["--tokenizer-hf-no-include-special-tokens"],
    ["--no-tokenizer-sentencepiece-ignore-extra-whitespaces"],
    ["--trust-remote-code"],
    ["--null-tokenizer-pad-id", "-1"],
    ["--null-tokenizer-eod-id", "99"],
    ["--chat-template", "x"],
    ["--use-gigatoken"],
    ["--tiktoken-pattern", "v2"],
    ["--tiktoken_num_special_tokens=1000"],
    ["--tokenizer-special-tokens", "<a>", "<b>"],
    ["--json-keys", "text"],
    ["--lang", "german", "--keep-newlines"],
    ["--workers-to-check", "2", "4", "--max-documents", "5"],
    ["--partitions", "2", "--keep-sequential-samples", "--log-interval", "1"],
]
"""Flags of Megatron-LM's script that do not change what a NullTokenizer writes without --split-sentences."""


@pytest.fixture
def text(tmp_path):
    lines = [json.dumps({"text": f"{number} 2 3"}) + "\n" for number in range(20)]
    (tmp_path / "x.jsonl").write_text("".join(lines))
    return tmp_path


def written(folder, name, *flags):
    words = ["--input", str(folder / "x.jsonl"), "--output-prefix", str(folder / name)]
    call("preprocess", ["--flags-of", "megatron", *words, "--workers", "1", *flags])
    return TokenReader(folder / f"{name}_text_document")


def test_flags_without_effect_are_accepted_and_change_nothing(text, capsys):
    flags = [word for group in WITHOUT_EFFECT for word in group]
    plain = written(text, "plain", *IDS, "--append-eod")
    capsys.readouterr()
    full = written(text, "full", *IDS, "--append-eod", *flags)
    for suffix in (".bin", ".idx"):
        first, second = (Path(f"{reader.prefix}{suffix}") for reader in (plain, full))
        assert first.read_bytes() == second.read_bytes()
    told = capsys.readouterr().err
    assert "no effect on token files: --padded-vocab-size, --no-pad-vocab-size" in told
    assert "--trust-remote-code: code that comes with a tokenizer is never run" in told


def test_the_end_of_a_document_of_a_null_tokenizer_is_the_id_that_is_given(text):
    for flags, eod in (([], 99), (["--null-tokenizer-eod-id", "7"], 7)):
        reader = written(text, f"eod{eod}", *IDS, "--append-eod", *flags)
        assert reader.get(4).tolist() == [4, 2, 3, eod]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--tokenizer-metadata", "m.json"], "--tokenizer-metadata m.json is not there yet"),
        (["--vocab-extra-ids", "3"], "--vocab-extra-ids 3 belongs to another kind of model"),
        (["--null-tokenizer-pad-id", "5"], "--null-tokenizer-pad-id 5 is not there yet"),
        (["--tokenizer-type"], "--tokenizer-type needs a value"),
        (["--null-tokenizer-eod-id", "100"], "use 0 to 99"),
        (["--vocab-file", "v"], "does not read vocab-file and merge-file"),
        (["--nonsense"], "--nonsense"),
    ],
)
def test_what_is_not_there_is_named_before_anything_is_written(text, flags, told):
    with pytest.raises(UserError) as caught:
        written(text, "no", *IDS, *flags)
    assert told in str(caught.value)
    assert [path.name for path in text.iterdir()] == ["x.jsonl"]


def test_the_numbers_of_workers_are_measured_and_nothing_is_written(text, capsys):
    words = ["--input", str(text / "x.jsonl"), "--output-prefix", str(text / "o"), *BYTES]
    measured = [
        "--find-optimal-num-workers",
        "--workers-to-check",
        "1",
        "2",
        "--max-documents",
        "9",
    ]
    assert main(["preprocess", "--flags-of", "megatron", *words, *measured]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "9 documents, nothing written"
    assert sorted(line.split()[0] for line in lines[1:3]) == ["1", "2"]
    assert lines[3] == f"fastest: --workers {lines[1].split()[0]}"
    assert [path.name for path in text.iterdir()] == ["x.jsonl"]


def test_the_script_reads_the_flags_so_and_a_folder_is_merged_by_name(text, monkeypatch):
    def run(tool, *words):
        monkeypatch.setattr("sys.argv", [tool, *words])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
        assert ended.value.code == 0

    (text / "parts").mkdir()
    for name in ("b", "a"):
        words = ["--input", str(text / "x.jsonl"), "--output-prefix", str(text / "parts" / name)]
        run("preprocess_data.py", *words, *BYTES, "--workers", "1", "--vocab-extra-ids", "0")
    run("merge_datasets.py", "--input", str(text / "parts"), "--output-prefix", str(text / "all"))
    assert len(TokenReader(text / "all").documents) - 1 == 40
