"""A tokenizer that several files or options name: GPT-2's two files, and Megatron-LM's list of ranks."""

import base64
import json
from pathlib import Path

import pytest

from megascratch import tokenizer as tokenizers
from megascratch.commands import call
from megascratch.config.errors import UserError
from megascratch.tokenizer import TokenizerSource
from megascratch.tokenizer.registry import MEGATRON_SPECIAL_TOKENS, dump
from megascratch.tokenizer.simple import ByteTokenizer
from megascratch.tokenizer.splits import SPLITS
from tests.support.byte_vocabularies import END, trained

TEXTS = ["", "Don't panic 1234", " à la\n\n carte  ", "<s>x</s>", "日本\U0001f600"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """GPT-2's two files, under names that a folder would not be searched for."""
    folder = tmp_path_factory.mktemp("pair")
    model = trained("gpt2").record()["model"]
    vocab = {END: len(model["vocab"])} | model["vocab"]
    (folder / "words").write_text(json.dumps(vocab))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "pairs").write_text("\n".join(lines) + "\n")
    return {"vocab_file": str(folder / "words"), "merge_file": str(folder / "pairs")}


def ranks_file(folder: Path, *more: bytes) -> str:
    """Megatron-LM's list: the 256 bytes, then the tokens of `more`."""
    tokens = [*(bytes([byte]) for byte in range(256)), *more]
    entries = []
    for rank, token in enumerate(tokens):
        coded = base64.b64encode(token).decode()
        entries.append({"rank": rank, "token_bytes": coded, "token_str": None})
    path = folder / "ranks.json"
    path.write_text(json.dumps(entries))
    return str(path)


def test_two_files_are_the_tokenizer_of_the_folder_that_has_both(pair, tmp_path):
    (tmp_path / "vocab.json").write_bytes(Path(pair["vocab_file"]).read_bytes())
    (tmp_path / "merges.txt").write_bytes(Path(pair["merge_file"]).read_bytes())
    folder = tokenizers.load("GPT2BPETokenizer", tmp_path)
    for kind in (None, "GPT2BPETokenizer"):
        named = TokenizerSource(tokenizer_type=kind, **pair).load()
        assert (named.fingerprint, named.eod) == (folder.fingerprint, folder.eod)
        assert [named.encode(text) for text in TEXTS] == [folder.encode(text) for text in TEXTS]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"merge_file": None}, "needs merge-file"),
        ({"vocab_file": None}, "needs vocab-file"),
        ({"tokenizer_model": "t.json"}, "tokenizer-model (t.json) and vocab-file"),
        ({"tokenizer_type": "Llama2Tokenizer"}, "use GPT2BPETokenizer"),
        ({"merge_file": "nowhere"}, "--merge-file nowhere cannot be read"),
        ({"vocab_file": "nowhere"}, "--vocab-file nowhere cannot be read"),
    ],
)
def test_two_files_that_do_not_make_a_tokenizer_are_refused(pair, given, told):
    with pytest.raises(UserError) as caught:
        TokenizerSource(**pair | given).load()
    assert told in str(caught.value)


def test_every_command_reads_both_files(pair, tmp_path, capsys):
    flags = ["--vocab-file", pair["vocab_file"], "--merge-file", pair["merge_file"]]
    (tmp_path / "x.jsonl").write_text('{"text": "a b"}\n')
    prefix = str(tmp_path / "out")
    words = ["--input", str(tmp_path / "x.jsonl"), "--output-prefix", prefix, *flags]
    assert call("preprocess", [*words, "--workers", "1"]) == 0
    following = f"--vocab-file {pair['vocab_file']} --merge-file {pair['merge_file']}"
    assert following in capsys.readouterr().out
    corpus = f"{prefix}_text_document"
    manifest = json.loads(Path(f"{corpus}.json").read_text())
    tokenizer = TokenizerSource(**pair).load()
    assert manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert manifest["tokenizer"]["model"] == pair["vocab_file"]
    call("tokenizer", ["encode", "a b", *flags])
    ids = capsys.readouterr().out.split()
    assert list(map(int, ids)) == tokenizer.encode("a b")
    call("tokenizer", ["decode", *ids, *flags])
    assert capsys.readouterr().out == "a b\n"
    assert call("data", ["inspect", corpus, "--samples", "1", *flags]) == 0
    assert "'a b'" in capsys.readouterr().out
    assert call("data", ["validate", corpus, *flags]) == 0


@pytest.mark.parametrize(("pattern", "split"), [(None, 2), ("v1", 1), ("v2", 2)])
def test_a_list_of_ranks_gives_the_ids_of_tiktoken(tmp_path, pattern, split):
    """The expected ids are those of tiktoken 0.14, with Megatron-LM's way to shift ranks behind the special tokens."""
    tiktoken = pytest.importorskip("tiktoken")
    more = [b" a", b" A", b"aB", b"la", b"n't", b"\n\n", b" par"]
    path = ranks_file(tmp_path, *more)
    source = TokenizerSource("TikTokenizer", path, None, tiktoken_pattern=pattern)
    tokens = [*(bytes([byte]) for byte in range(256)), *more]
    oracle = tiktoken.Encoding(
        name="ranks",
        pat_str=SPLITS[f"megatron-v{split}"],
        mergeable_ranks={token: 1000 + rank for rank, token in enumerate(tokens)},
        special_tokens={},
    )
    found = source.load()
    assert (found.eod, found.bos, found.pad, found.vocab_size) == (2, 1, 4, 1000 + len(tokens))
    for text in [*TEXTS, "aBla Ala\n\n\n a 12"]:
        assert found.encode(text) == oracle.encode_ordinary(text)


def test_the_special_tokens_of_a_list_of_ranks_are_the_first_ids(tmp_path):
    path = ranks_file(tmp_path, b"ab", b"cd")
    names = (*MEGATRON_SPECIAL_TOKENS, "<fim>")
    source = TokenizerSource(
        tokenizer_model=path,
        vocab_size=10 + 257,
        tiktoken_num_special_tokens=10,
        tokenizer_special_tokens=names,
    )
    found = source.load()
    assert found.vocab_size == 267  # the last token is cut
    assert found.encode("ab<fim>cd", parse_specials=True) == [266, 7, 10 + ord("c"), 10 + ord("d")]
    assert [found.id_of(word) for word in ("<fim>", "<SPECIAL_8>", "ab", "no")] == [7, 8, 266, None]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"vocab_size": 9999}, "--vocab-size 9999 must be above the 1000 special tokens"),
        ({"tokenizer_special_tokens": ("<s>",)}, "contain <unk> </s> <mask>"),
        ({"tiktoken_num_special_tokens": 3}, "at most 3 (--tiktoken-num-special-tokens)"),
    ],
)
def test_options_that_the_list_of_ranks_does_not_allow_are_refused(tmp_path, given, told):
    with pytest.raises(UserError) as caught:
        TokenizerSource(tokenizer_model=ranks_file(tmp_path), **given).load()
    assert told in str(caught.value)


@pytest.mark.parametrize(
    "entry",
    [{"rank": 7}, [], {"rank": 0, "token_bytes": "AA=="}, {"rank": 256, "token_bytes": "?"}],
)
def test_a_damaged_list_of_ranks_is_refused_with_the_entry(tmp_path, entry):
    path = Path(ranks_file(tmp_path))
    path.write_text(json.dumps([*json.loads(path.read_text()), entry]))
    with pytest.raises(UserError, match="entry 256 is not"):
        TokenizerSource("TikTokenizer", str(path)).load()


def test_a_token_is_found_by_its_spelling_in_every_kind(tmp_path):
    record = trained("gpt2").record()
    (tmp_path / "t.json").write_bytes(dump(record))
    assert tokenizers.load(None, tmp_path / "t.json").id_of(END) == record["added_tokens"][0]["id"]
    pieces = tokenizers.train(
        "SentencePieceTokenizer", ["a b c " * 90], tmp_path / "t.model", vocab_size=262
    )
    assert (pieces.id_of("<eod>"), pieces.id_of("zz")) == (pieces.eod, None)
    assert ByteTokenizer().id_of("a") is None


def test_the_ids_around_a_text_can_be_left_out_and_the_tokenizer_is_another_one_then(tmp_path):
    record = trained("gpt2").record()
    end = record["added_tokens"][0]["id"]
    record["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": END, "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {END: {"id": END, "ids": [end], "tokens": [END]}},
    }
    (tmp_path / "t.json").write_bytes(dump(record))
    named = TokenizerSource(tokenizer_model=str(tmp_path / "t.json"))
    whole = named.load()
    bare = named._replace(tokenizer_hf_no_include_special_tokens=True).load()
    assert whole.encode("a b") == [end, *bare.encode("a b")]
    assert bare.encode_batch(["a b"]).ids.tolist() == bare.encode_bare("a b")
    assert bare.fingerprint != whole.fingerprint
