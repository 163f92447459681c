"""Every tokenizer gives text back as it was, says what it does not know, and has a fingerprint of its own."""

import inspect
import json
import textwrap

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megascratch import tokenizer as tokenizers
from megascratch.config.errors import UserError
from megascratch.tokenizer import sentence_piece
from megascratch.tokenizer.simple import ByteTokenizer, CharTokenizer, NullTokenizer

CODE = [inspect.getsource(module) for module in (textwrap, inspect)]
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def pieces(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("tokenizer") / "t.model"
    return tokenizers.train(
        "SentencePieceTokenizer", CODE, output, vocab_size=600, model_type=request.param
    )


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
@example("a\n\n\tb  c\r\n   ")
@example(" lead and trail ")
@example("\u2581x \u2581\u2581\n\u2581")
@example("<eod></s><unk><0x41>\ufeff\x00\U0001f600e\u0301 \u2047 ")
def test_sentence_piece_and_bytes_lose_nothing(pieces, text):
    for tokenizer in (pieces, ByteTokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eod not in ids and all(
            0 <= number < tokenizer.vocab_size for number in ids
        )


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXTS | st.binary(max_size=9), max_size=5))
@example(["", b""])
@example([b"\xff\xe2\x82a", "\ud800", "\ud83d\ude00"])
def test_a_batch_is_its_texts_back_to_back_with_u_fffd_for_what_is_no_text(pieces, texts):
    for tokenizer in (pieces, ByteTokenizer()):
        ids, lengths = tokenizer.encode_batch(texts)
        assert (ids.dtype, lengths.dtype) == (np.int32, np.int64)
        alone = [
            tokenizer.encode(t if isinstance(t, str) else t.decode(errors="replace")) for t in texts
        ]
        assert (ids.tolist(), lengths.tolist()) == (
            [number for text in alone for number in text],
            [*map(len, alone)],
        )
    assert ByteTokenizer().encode("\ud800a\ud83d\ude00") == list("\ufffda\U0001f600".encode())


def test_sentence_piece_learns_words_and_indentation(pieces):
    assert pieces.vocab_size == 600
    assert sum(len(pieces.encode(text)) for text in CODE) < 0.55 * sum(map(len, CODE))


def test_the_end_of_a_document_is_no_text(pieces):
    for tokenizer in (pieces, ByteTokenizer(), CharTokenizer("ab", eod=True)):
        assert tokenizer.decode([tokenizer.eod, *tokenizer.encode("ab"), tokenizer.eod]) == "ab"


def test_a_long_text_is_cut_at_line_ends_and_loses_nothing(pieces, monkeypatch):
    monkeypatch.setattr(sentence_piece, "LONGEST_ENCODED", 10)
    for text in ("", "x" * 10, "x" * 35, "ab\ncd\n" * 9, "\n" * 40, CODE[0]):
        assert pieces.decode(pieces.encode(text)) == text
    parts = list(sentence_piece._parts("ab\ncd\nabcdefghijklm\n", 10))
    assert parts == ["ab\ncd\n", "abcdefghij", "klm\n"]


def test_training_twice_gives_the_same_model(pieces, tmp_path):
    first, second = (
        tokenizers.train(
            "SentencePieceTokenizer", CODE, tmp_path / name / "t.model", vocab_size=600
        )
        for name in "ab"
    )
    assert first.fingerprint == second.fingerprint


@pytest.mark.parametrize(
    ("texts", "vocab_size", "law"),
    [
        (CODE, 100_000, r"100000 pieces on this text: Vocabulary size too high .* value <= \d+"),
        (CODE, 100, "Vocabulary size is smaller than required_chars"),
        ([], 400, "cannot train 400 pieces on this text: no text"),
    ],
)
def test_a_text_that_does_not_suffice_is_refused(tmp_path, texts, vocab_size, law):
    with pytest.raises(UserError, match=law):
        tokenizers.train(
            "SentencePieceTokenizer", texts, tmp_path / "t.model", vocab_size=vocab_size
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("eod", [True, False])
def test_characters_are_sorted_and_the_end_of_document_is_the_last_id(tmp_path, eod):
    tokenizer = tokenizers.train(
        "CharTokenizer", ["hello\n", "wörld "], tmp_path / "c.json", eod=eod
    )
    assert tokenizer.characters == "\n dehlorwö"
    assert (tokenizer.vocab_size, tokenizer.eod) == ((11, 10) if eod else (10, None))
    assert tokenizer.encode("hello wörld") == [4, 3, 5, 5, 6, 1, 8, 9, 7, 5, 2]
    assert tokenizer.decode(tokenizer.encode("hello wörld")) == "hello wörld"


def test_an_unknown_character_is_named():
    with pytest.raises(
        UserError, match=r"character 'é' \(U\+00E9\) at place 2 is not among the 2 characters"
    ):
        CharTokenizer("ab", eod=False).encode("abéé")


def test_numbers_are_read_as_they_stand():
    tokenizer = NullTokenizer(10)
    assert (tokenizer.encode(" 1 2\n8 "), tokenizer.eod, tokenizer.decode([1, 9, 2])) == (
        [1, 2, 8],
        9,
        "1 2",
    )
    for text, law in (
        ("1 x", "invalid literal.*'x'"),
        ("1 10", "id 10 at place 1 is outside.*0 to 9"),
        ("-1", "id -1"),
    ):
        with pytest.raises(UserError, match=law):
            tokenizer.encode(text)


def test_bytes_that_are_cut_inside_a_character_are_shown():
    assert ByteTokenizer().decode("aé".encode()[:2]) == "a\ufffd"


@pytest.mark.parametrize("number", [-1, 600])
def test_an_id_outside_the_vocabulary_is_refused(pieces, number):
    with pytest.raises(
        UserError, match=f"id {number} at place 1 is outside the SentencePieceTokenizer's"
    ):
        pieces.decode([0, number])


def test_fingerprints_tell_what_decides_the_ids(pieces, tmp_path):
    tokenizers.train("CharTokenizer", ["ba"], tmp_path / "c.json")
    again = tokenizers.load("CharTokenizer", tmp_path / "c.json")
    assert again.fingerprint == CharTokenizer("ab", eod=True).fingerprint
    different = [
        pieces,
        ByteTokenizer(),
        NullTokenizer(10),
        NullTokenizer(11),
        CharTokenizer("ab", eod=True),
        CharTokenizer("ab", eod=False),
        CharTokenizer("abc", eod=True),
    ]
    assert len({tokenizer.fingerprint for tokenizer in different}) == len(different)
    assert all(len(tokenizer.fingerprint) == 64 for tokenizer in different)


def test_the_suffix_tells_the_kind(pieces, tmp_path):
    (tmp_path / "c.json").write_bytes(CharTokenizer("ab", eod=True).dump())
    assert tokenizers.load(None, tmp_path / "c.json").kind == "CharTokenizer"
    assert tokenizers.load("ByteTokenizer", None).vocab_size == 257
    assert tokenizers.load("NullTokenizer", None, 7).vocab_size == 7


FILES = {
    "garbage.model": b"no model at all" * 20,
    "empty.model": b"",
    "other.json": json.dumps({"model": "bert"}).encode(),
    "list.json": b"[]",
    "broken.json": b"{",
    "half.json": json.dumps({"tokenizer": "CharTokenizer", "characters": "ab"}).encode(),
    "unsorted.json": json.dumps(
        {"tokenizer": "CharTokenizer", "eod": True, "characters": "ba"}
    ).encode(),
    "strange.txt": b"",
}


@pytest.mark.parametrize(
    ("kind", "model", "vocab_size", "law"),
    [
        (None, None, None, "no tokenizer: give --tokenizer-model or --tokenizer-type"),
        (None, "strange.txt", None, "none of .json, .model and .tiktoken; give --tokenizer-type"),
        (
            "BertWordPieceCase",
            None,
            None,
            "is unknown; use one of SentencePieceTokenizer, HuggingFaceTokenizer",
        ),
        ("CharTokenizer", None, None, "needs --tokenizer-model, the tokenizer's file"),
        ("ByteTokenizer", "other.json", None, "reads no file; remove --tokenizer-model"),
        ("NullTokenizer", None, None, "needs --vocab-size"),
        ("NullTokenizer", None, 0, r"--vocab-size \(0\) must be at least 1"),
        (None, "nowhere.model", None, "nowhere.model cannot be read: No such file"),
        (None, "garbage.model", None, "garbage.model is not a SentencePiece model"),
        (None, "empty.model", None, "empty.model is not a SentencePiece model"),
        ("SentencePieceTokenizer", "other.json", None, "other.json is not a SentencePiece model"),
        (
            "CharTokenizer",
            "garbage.model",
            None,
            "garbage.model is not a CharTokenizer: it holds no JSON",
        ),
        (
            "CharTokenizer",
            "other.json",
            None,
            "other.json is not a CharTokenizer: its JSON does not say",
        ),
        (
            None,
            "other.json",
            None,
            'other.json is not a tokenizer.json: it has no "model" with a "vocab"',
        ),
        (None, "list.json", None, "list.json is not a tokenizer.json"),
        (None, "broken.json", None, "broken.json is not a tokenizer: it holds no JSON"),
        (None, "half.json", None, "half.json is damaged"),
        (None, "unsorted.json", None, "must be sorted, all different"),
    ],
)
def test_what_cannot_be_loaded_is_refused(tmp_path, kind, model, vocab_size, law):
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=law):
        tokenizers.load(kind, model and tmp_path / model, vocab_size)


@pytest.mark.parametrize(
    ("kind", "output", "options", "law"),
    [
        ("ByteTokenizer", "t.model", {}, "a ByteTokenizer cannot be trained"),
        ("CharTokenizer", "t.model", {}, "must end in .json"),
        (
            "CharTokenizer",
            "t.json",
            {"vocab_size": 5},
            "--vocab-size 5 is not for a CharTokenizer, which has the characters",
        ),
        ("SentencePieceTokenizer", "t.model", {}, "needs --vocab-size"),
        (
            "SentencePieceTokenizer",
            "t.model",
            {"vocab_size": 600, "eod": False},
            "always has an end of document",
        ),
    ],
)
def test_options_that_do_not_belong_together_are_refused(tmp_path, kind, output, options, law):
    with pytest.raises(UserError, match=law):
        tokenizers.train(kind, CODE, tmp_path / output, **options)


def test_an_empty_text_has_no_characters(tmp_path):
    with pytest.raises(UserError, match="the training text is empty"):
        tokenizers.train("CharTokenizer", ["", ""], tmp_path / "c.json")
