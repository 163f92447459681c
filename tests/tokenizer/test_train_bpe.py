"""Byte-level BPE: ids are those of Hugging Face's library and of tiktoken on every text, in every file it comes in."""

import itertools
import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import tiktoken
import tokenizers as library
from tiktoken_ext import openai_public

from megascratch import tokenizer as tokenizers
from megascratch.config.errors import UserError
from megascratch.tokenizer import fast_engine, train_bpe
from megascratch.tokenizer.adversarial_texts import probe, random_texts
from megascratch.tokenizer.hugging_face import HuggingFaceTokenizer
from megascratch.tokenizer.interface import as_text
from megascratch.tokenizer.splits import ENCODINGS, SPLITS, Encoding, split_of
from megascratch.tokenizer.vocabulary import Vocabulary, from_ranks, from_record, spell, write_ranks
from tests.support.byte_vocabularies import CODE, END, revealing, trained

SLOW = ("megatron-v1",)  # gigatoken does not know this split


@pytest.fixture(autouse=True)
def the_fast_engine_is_used(request):
    """A warning says that it is not; where that is expected the test catches it."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def expression(split: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """As tiktoken itself has it, possessive quantifiers and all, where it does."""
    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *_, **__: {})
    own = {"gpt2": "r50k_base", "cl100k": "cl100k_base", "o200k": "o200k_base"}.get(split)
    return getattr(openai_public, own)()["pat_str"] if own else SPLITS[split]


@pytest.mark.parametrize("split", [split for split in SPLITS if split not in SLOW])
def test_ids_are_those_of_hugging_face_and_of_tiktoken(split, monkeypatch, count=150, seed=1):
    """With the libraries' own switches for special tokens: read as plain text, or as the token."""
    vocabulary = trained(split)
    ours = HuggingFaceTokenizer(vocabulary.record())
    texts = [as_text(text) for text in [*CODE, *probe([END]), *random_texts(seed, count, [END])]]
    theirs = library.Tokenizer.from_str(json.dumps(vocabulary.record()))
    peer = tiktoken.Encoding(
        "t",
        pat_str=expression(split, monkeypatch),
        mergeable_ranks=vocabulary.tokens,
        special_tokens=vocabulary.specials,
    )
    from_file = HuggingFaceTokenizer(
        from_ranks(vocabulary.tokens, Encoding(split, vocabulary.specials), "t").record()
    )
    for parse in (False, True):
        theirs.encode_special_tokens = not parse
        ids, lengths = ours.encode_batch(texts, parse)
        assert ids.tolist() == [number for text in texts for number in theirs.encode(text).ids]
        one_by_one = [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])]
        assert [ours.encode(text, parse) for text in texts] == one_by_one
        allowed = "all" if parse else set()
        wanted = [
            peer.encode(text, allowed_special=allowed, disallowed_special=()) for text in texts
        ]
        assert from_file.encode_batch(texts, parse).ids.tolist() == [
            number for text in wanted for number in text
        ]
        assert (vocabulary.specials[END] in ids) is parse
    assert all(ours.decode(ours.encode(text)) == text for text in texts)


@pytest.mark.deep
@pytest.mark.parametrize("split", ["gpt2", "cl100k", "o200k", "qwen2"])
@pytest.mark.parametrize("seed", [3, 4])
def test_ids_are_the_same_on_100_000_random_texts(split, seed, monkeypatch):
    test_ids_are_those_of_hugging_face_and_of_tiktoken(split, monkeypatch, count=100_000, seed=seed)


def around(code: int) -> str:
    """A character beside a letter, a capital, a digit, a sign and each kind of space."""
    c = chr(code)
    return f"a{c}A{c}1{c}!{c} {c}\n{c}  {c}a's{c}a"


def sweep(split: str, codes: range) -> None:
    ours = HuggingFaceTokenizer(revealing(split).record())
    codes = [code for code in codes if not 0xD800 <= code < 0xE000]
    texts = ["".join(map(around, codes[at : at + 64])) for at in range(0, len(codes), 64)]
    encode = ours.encode_batch(["a"]) and ours._encode[False]
    assert fast_engine.first_difference(encode, ours.reference, texts) is None


@pytest.mark.parametrize("split", ["gpt2", "o200k"])
def test_each_character_is_cut_alike(split):
    for codes in (
        range(0x80, 0x500),
        range(0x880, 0x890),
        range(0xA7C0, 0xA800),
        range(0x33400, 0x33500),
    ):
        sweep(split, codes)


@pytest.mark.deep
@pytest.mark.parametrize("split", ["gpt2", "cl100k", "o200k"])
def test_each_character_of_unicode_is_cut_alike(split):
    sweep(split, range(0x80, 0x110000))


def test_a_character_that_one_engine_does_not_know_goes_to_the_reference():
    assert not fast_engine.same_unicode_classes("a\u088f") and not fast_engine.same_unicode_classes(
        "\U00033057"
    )
    assert fast_engine.same_unicode_classes("plain") and fast_engine.same_unicode_classes(
        "naïve 天 😀 𝕏"
    )


@pytest.mark.parametrize(
    ("grows", "restarts"),
    [(0, 0), (fast_engine.MOST_GROWN // 4, 4), (fast_engine.MOST_GROWN + 1, 20)],
    ids=["memory stays", "grows by a quarter at each look", "grows by all at each look"],
)
def test_an_engine_starts_anew_when_the_process_has_grown_and_gives_the_same_ids(
    grows, restarts, monkeypatch
):
    """20 texts of 100 characters, a look at the memory before each; a restart looks once more."""
    memory = itertools.count(1 << 30, grows)
    loads = []
    rust = fast_engine.gigatoken_rs
    monkeypatch.setattr(fast_engine, "LOOKED_AT", 0)
    monkeypatch.setattr(fast_engine, "resident", lambda: next(memory))
    loading = SimpleNamespace(
        load_hf_json=lambda words: loads.append(1) or rust.load_hf_json(words)
    )
    monkeypatch.setattr(fast_engine, "gigatoken_rs", loading)
    ours = HuggingFaceTokenizer(trained("gpt2").record())
    texts = [CODE[0][at : at + 100] for at in range(0, 2000, 100)]
    encode = fast_engine._Gigatoken(ours._json)
    assert [encode(text).tolist() for text in texts] == [ours.encode(text) for text in texts]
    assert len(loads) == 1 + restarts


@pytest.mark.parametrize("split", ["gpt2", "llama3"])
def test_training_finds_the_merges_of_hugging_faces_trainer_and_twice_the_same(split, monkeypatch):
    monkeypatch.setattr(train_bpe, "BYTES_PER_MERGE", 0)
    texts = [
        *CODE,
        *(as_text(text) for text in probe() if fast_engine.same_unicode_classes(as_text(text))),
    ]
    found = train_bpe.train(texts, 2000, split)
    assert found.merges == train_bpe.by_reference(texts, 2000 - 257, split)
    assert found == train_bpe.train(texts, 2000, split)
    assert [found.tokens[bytes([byte])] for byte in range(256)] == [
        *range(256)
    ] and found.specials == {END: 1999}


def test_the_trainer_falls_back_where_a_character_is_new_or_the_text_is_used_up(monkeypatch):
    fast = []
    monkeypatch.setattr(
        train_bpe,
        "_is_alive",
        lambda *args, alive=train_bpe._is_alive: fast.append(1) or alive(*args),
    )
    train_bpe._merges(iter(CODE), 9, "gpt2")
    assert fast  # with enough text it is used
    monkeypatch.setattr(train_bpe, "BYTES_PER_MERGE", 0)
    for texts, wanted in (["\U00033057\U000db3cc"] * 9, 12), (["hello hello a"], 50):
        assert train_bpe._merges(iter(texts), wanted, "gpt2") == train_bpe.by_reference(
            texts, wanted, "gpt2"
        )
    monkeypatch.setattr(train_bpe, "by_gigatoken", lambda *_: [(b"a", b"b")])
    assert train_bpe._merges(iter(CODE), 9, "gpt2") == train_bpe.by_reference(CODE, 9, "gpt2")


@pytest.mark.parametrize(
    ("texts", "vocab_size", "split", "specials", "law"),
    [
        (
            CODE,
            256,
            "gpt2",
            [END],
            r"--vocab-size \(256\) must hold 256 bytes and 1 special tokens: use 257 or more",
        ),
        (CODE, 300, "gpt3", [END], "--split gpt3 is unknown; use one of gpt2, cl100k"),
        (CODE, 300, "gpt2", [END, END], "must all differ"),
        (CODE, 300, "gpt2", ["x"], "have two bytes or more"),
        (CODE, 2000, "gpt2", ["return"], "special token 'return' is also a token of the text"),
        (
            ["abab abab"],
            400,
            "gpt2",
            [END],
            "gives 3 merges, --vocab-size 400 needs 143: use --vocab-size 260 or less",
        ),
        (
            [],
            400,
            "gpt2",
            [END],
            "gives 0 merges, --vocab-size 400 needs 143: use --vocab-size 257 or less",
        ),
    ],
)
def test_a_vocabulary_that_cannot_be_trained_is_refused(texts, vocab_size, split, specials, law):
    with pytest.raises(UserError, match=law):
        train_bpe.train(texts, vocab_size, split, specials)


def llama_like() -> dict:
    """Llama 3's habits: a begin of text before every text, words taken whole."""
    record = (
        trained("llama3")
        ._replace(specials={"<|begin_of_text|>": 1499, END: 1500}, whole_words=True)
        .record()
    )
    start = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
    return record | {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {
                "<|begin_of_text|>": {
                    "id": "<|begin_of_text|>",
                    "ids": [1499],
                    "tokens": ["<|begin_of_text|>"],
                }
            },
        }
    }


@pytest.mark.parametrize("change", ["llama", "nfc", "gap"])
def test_what_a_file_puts_around_or_does_before_is_done(change):
    record = {
        "llama": llama_like(),
        "nfc": trained("qwen2")._replace(normal_form="NFC").record(),
        "gap": trained("cl100k")._replace(specials={END: 1505, "<|pad|>": 1600}).record(),
    }[change]
    ours, theirs = HuggingFaceTokenizer(record), library.Tokenizer.from_str(json.dumps(record))
    texts = [
        as_text(text)
        for text in [*probe([*ours.specials]), *random_texts(2, 200, [*ours.specials])]
    ]
    for parse in (False, True):
        theirs.encode_special_tokens = not parse
        wanted = [number for text in texts for number in theirs.encode(text).ids]
        assert ours.encode_batch(texts, parse).ids.tolist() == wanted
    assert ours.vocab_size == max(theirs.get_vocab().values()) + 1
    assert (ours.bos, ours.pad) == (
        (1499, None) if change == "llama" else (None, 1600 if change == "gap" else None)
    )


def test_an_engine_that_is_wrong_or_unknown_is_not_used(monkeypatch):
    wrong = HuggingFaceTokenizer(trained("gpt2").record())
    wrong._json = wrong._json.replace('"ignore_merges": false', '"ignore_merges": true').replace(
        json.dumps(spell(b"self")), json.dumps(spell(b"selg"))
    )
    for tokenizer, reason in (
        (wrong, "its ids differ on|cannot encode"),
        (HuggingFaceTokenizer(trained(SLOW[0]).record()), "Unknown pre_tokenizer"),
    ):
        with pytest.warns(UserWarning, match=reason):
            assert tokenizer.encode_batch(CODE).ids.tolist() == [
                id for text in CODE for id in tokenizer.encode(text)
            ]
    monkeypatch.setattr(fast_engine, "gigatoken_rs", None)
    with pytest.warns(UserWarning, match="it is not installed: pip install gigatoken"):
        HuggingFaceTokenizer(trained("gpt2").record()).encode_batch(["a"])


def files(folder, vocabulary: Vocabulary) -> dict[str, str]:
    """The same vocabulary in every form: path -> kind."""
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary.record()))
    tokens = {
        spell(token): number for token, number in vocabulary.tokens.items()
    } | vocabulary.specials
    (folder / "gpt2-vocab.json").write_text(json.dumps(tokens))
    merges = "".join(f"{spell(left)} {spell(right)}\n" for left, right in vocabulary.merges)
    (folder / "gpt2-merges.txt").write_text("#version: 0.2\n" + merges)
    return {"tokenizer.json": "HuggingFaceTokenizer", "gpt2-vocab.json": "GPT2BPETokenizer"}


def test_each_form_is_told_by_its_content_and_gives_the_same_tokenizer(tmp_path):
    vocabulary = trained("gpt2")
    for name, kind in files(tmp_path, vocabulary).items():
        for told in (None, kind):
            read = tokenizers.load(told, tmp_path / name)
            assert (read.vocab_size, read.eod) == (1500, 1499)
            assert read.fingerprint == HuggingFaceTokenizer(vocabulary.record()).fingerprint
    assert tokenizers.load(None, tmp_path).kind == "HuggingFaceTokenizer"
    old = vocabulary.record()
    old["model"]["merges"] = [" ".join(pair) for pair in old["model"]["merges"]]
    assert HuggingFaceTokenizer(old).fingerprint == read.fingerprint
    assert from_record(old, "old") == vocabulary


def test_a_rank_file_is_read_by_its_published_name(tmp_path, monkeypatch):
    vocabulary = trained("gpt2")
    monkeypatch.setitem(ENCODINGS, "r50k_base", Encoding("gpt2", vocabulary.specials))
    for name in ("r50k_base.tiktoken", "other.tiktoken", "tokenizer.model"):
        (tmp_path / name).write_bytes(write_ranks(vocabulary))
    read = tokenizers.load(None, tmp_path / "r50k_base.tiktoken")
    assert read.encode_batch(CODE).ids.tolist() == [
        id
        for t in CODE
        for id in tokenizers.load("TikTokenizer", tmp_path / "r50k_base.tiktoken").encode(t)
    ]
    assert (read.vocab_size, read.eod) == (1500, 1499)
    for name in ("other.tiktoken", "tokenizer.model"):
        with pytest.raises(
            UserError, match=r"define neither how text is split.*megascratch tokenizer convert"
        ):
            tokenizers.load(None, tmp_path / name)


def test_roles_are_named_beside_the_file(tmp_path):
    record = trained("gpt2")._replace(specials={"<fin>": 1499, "<pad>": 1500}).record()
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    assert tokenizers.load(None, tmp_path).eod is None
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<fin>"}, "pad_token": None})
    )
    named = tokenizers.load(None, tmp_path)
    assert (named.eod, named.bos, named.pad) == (1499, None, 1500)
    assert named.decode([1499, *named.encode("a"), 1500]) == "a"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<nowhere>"}))
    with pytest.raises(UserError, match=r"names eos_token '<nowhere>', which .* does not contain"):
        tokenizers.load(None, tmp_path)


def test_every_split_is_recognised():
    assert [split_of(trained_record) for trained_record in map(pre_tokenizer_of, SPLITS)] == [
        "cl100k" if split == "llama3" else split for split in SPLITS
    ]


def pre_tokenizer_of(split: str) -> dict:
    return Vocabulary({}, [], split, {}).record()["pre_tokenizer"]


def small(**changes) -> dict:
    record = Vocabulary(
        {bytes([byte]): byte for byte in range(256)}, [], "gpt2", {END: 256}
    ).record()
    return record | changes


def model(**changes) -> dict:
    return small()["model"] | changes


LACKING = {word: number for word, number in small()["model"]["vocab"].items() if number != 0x41}
DAMAGE = {
    "bytes.json": (
        small(model=model(vocab=LACKING)),
        "no token for 1 of the 256 bytes .the first is 0x41",
    ),
    "merges.json": (
        small(model=model(merges=[["a", "nowhere"]])),
        "is not a tokenizer.json that `tokenizers` reads",
    ),
    "long_merge.json": (
        small(model=model(merges=[["a", "9" * 5000]])),
        "is not a tokenizer.json that `tokenizers` reads",
    ),
    "merge_type.json": (
        small(model=model(merges=7)),
        "is not a tokenizer.json that `tokenizers` reads",
    ),
    "type.json": (
        small(model=model(type="Magic")),
        "is not a tokenizer.json that `tokenizers` reads",
    ),
    "vocab.json": (
        small(model=model(vocab="x")),
        'has no "model" with a "vocab"|not a GPT-2 vocabulary',
    ),
    "added.json": (small(added_tokens=[{"id": "1"}]), '"added_tokens" must be a list of'),
    "twice.json": (
        small(added_tokens=small()["added_tokens"] * 2),
        "two special tokens have the same name or id",
    ),
    "clash.json": (
        small(added_tokens=[small()["added_tokens"][0] | {"id": 65}]),
        r"special token <\|endoftext\|> has id 65, which is 'A' in the vocabulary",
    ),
    "large.json": (
        small(model=model(vocab=small()["model"]["vocab"] | {"zz": 1 << 40})),
        "is not a tokenizer.json",
    ),
    "far.json": (
        small(model=model(vocab=small()["model"]["vocab"] | {"zz": (1 << 32) - 1})),
        "all below 2",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_tokenizer_json_is_refused(tmp_path, name):
    record, law = DAMAGE[name]
    (tmp_path / name).write_text(json.dumps(record))
    with pytest.raises(UserError, match=law) as refused:
        tokenizers.load(None, tmp_path / name)
    assert name in str(refused.value)
    assert len(str(refused.value)) < len(str(tmp_path)) + 500


@pytest.mark.parametrize(
    ("content", "law"),
    [
        (b"\x80\x04\x95pickle", ":1 is not `base64"),
        (b"IQ== 0\nIQ== 1\n", ":2 is not `base64"),
        (b"IQ== 0\nIg== 0\n", "two tokens have the same rank"),
        (b"IQ== 0\n", "no token for 255 of the 256 bytes"),
        (b"", "no token for 256 of the 256 bytes"),
        (b"IQ== -1\n", ":1 is not `base64"),
    ],
)
def test_a_damaged_rank_file_is_refused(tmp_path, content, law):
    (tmp_path / "r50k_base.tiktoken").write_bytes(content)
    with pytest.raises(UserError, match=f"r50k_base.tiktoken.*{law}|r50k_base.tiktoken{law}"):
        tokenizers.load(None, tmp_path / "r50k_base.tiktoken")


def test_damaged_gpt2_files_and_a_special_token_that_collides_are_refused(tmp_path):
    files(tmp_path, trained("gpt2"))
    (tmp_path / "gpt2-merges.txt").write_text("a b c\n")
    with pytest.raises(UserError, match=r"gpt2-merges.txt:1 is not two halves of a token"):
        tokenizers.load(None, tmp_path / "gpt2-vocab.json")
    (tmp_path / "gpt2-merges.txt").unlink()
    with pytest.raises(UserError, match=r"gpt2-merges.txt cannot be read"):
        tokenizers.load(None, tmp_path / "gpt2-vocab.json")
    with pytest.raises(UserError, match=r"special token <\|endoftext\|> .id 7. collides"):
        from_ranks(trained("gpt2").tokens, Encoding("gpt2", {END: 7}), "t")
