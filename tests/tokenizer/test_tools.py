"""A tokenizer is proved, converted and measured: what holds is said, what does not is refused or fails."""

import io
import json

import pytest
import sentencepiece
import tokenizers as library

from megascratch import tokenizer as tokenizers
from megascratch.commands import call
from megascratch.config.errors import UserError
from megascratch.tokenizer import hugging_face, sentence_piece
from megascratch.tokenizer.adversarial_texts import probe, random_texts
from megascratch.tokenizer.check import check
from megascratch.tokenizer.convert import convert
from megascratch.tokenizer.hugging_face import HuggingFaceTokenizer
from megascratch.tokenizer.interface import as_text
from megascratch.tokenizer.registry import dump
from megascratch.tokenizer.report import Usage
from megascratch.tokenizer.simple import ByteTokenizer, CharTokenizer
from megascratch.tokenizer.vocabulary import write_ranks
from tests.support.byte_vocabularies import CODE, END, trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One vocabulary in each form."""
    path = tmp_path_factory.mktemp("forms")
    (path / "bpe.json").write_bytes(dump(trained("o200k").record()))
    (path / "bpe.tiktoken").write_bytes(write_ranks(trained("o200k")))
    for kind in ("bpe", "unigram"):
        (path / f"{kind}.model").write_bytes(sentence_piece.train(CODE, 600, model_type=kind))
    (path / "code.txt").write_text(CODE[0])
    (path / "two.jsonl").write_text(
        "".join(
            json.dumps({"text": text, "lang": text[:2]}) + "\n"
            for text in ("de Straße", "en street", "de Weg 1")
        )
    )
    return path


@pytest.mark.parametrize("name", ["bpe.json", "bpe.model", "unigram.model", "chars", "bytes"])
def test_a_sound_tokenizer_passes_every_check(folder, name):
    own = {"chars": CharTokenizer(" abc", eod=True), "bytes": ByteTokenizer()}
    findings = check(own.get(name) or tokenizers.load(None, folder / name), count=200, seed=5)
    assert [finding for finding in findings if finding.broken] == []
    assert all(finding.texts for finding in findings[:4])


@pytest.mark.deep
@pytest.mark.parametrize("name", ["bpe.json", "bpe.model"])
def test_100_000_random_texts_pass(folder, name):
    assert not any(
        finding.broken for finding in check(tokenizers.load(None, folder / name), 100_000, seed=11)
    )


class Broken(ByteTokenizer):
    """One promise broken at a time."""

    def __init__(self, how: str):
        self.how = how

    def encode_bare(self, text, parse_specials=False, continues=False):
        return [*super().encode_bare(text), *{"eod": [256], "range": [257]}.get(self.how, [])]

    def encode_batch(self, texts, parse_specials=False, around=True):
        return super().encode_batch(
            [text.upper() if self.how == "engine" else text for text in texts]
        )

    def decode(self, ids):
        return "" if self.how == "decode" else super().decode([id for id in ids if id < 257])


@pytest.mark.parametrize(
    ("how", "promise"), [("engine", 0), ("decode", 1), ("range", 2), ("eod", 3)]
)
def test_a_broken_promise_is_found(how, promise):
    assert check(Broken(how), 50, seed=0)[promise].broken


def test_check_tells_by_its_exit_code(folder, capsys, monkeypatch):
    words = ["check", "--tokenizer-model", str(folder / "bpe.json"), "--random", "50"]
    assert call("tokenizer", words) == 0
    assert "pass  decoding gives the text back" in capsys.readouterr().out
    monkeypatch.setattr(hugging_face.HuggingFaceTokenizer, "decode", lambda *_: "x")
    assert call("tokenizer", words) == 1
    assert "FAIL  decoding gives the text back" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("source", "output", "options"),
    [
        ("bpe.json", "new.tiktoken", {}),
        ("bpe.tiktoken", "new.json", {"split": "o200k"}),
        ("bpe.model", "new.json", {}),
    ],
)
def test_a_conversion_keeps_every_id(folder, tmp_path, source, output, options):
    new = convert(folder / source, tmp_path / output, **options)
    old = tokenizers.load(None, folder / source.replace("tiktoken", "json"))
    assert new.encode_batch(CODE).ids.tolist() == old.encode_batch(CODE).ids.tolist()
    assert (new.vocab_size, new.eod) == (old.vocab_size, old.eod)
    if output == "new.json":
        assert tokenizers.load(None, tmp_path / output).fingerprint == new.fingerprint
    else:
        assert (
            convert(tmp_path / output, tmp_path / "back.json", split="o200k").fingerprint
            == new.fingerprint
        )


@pytest.mark.parametrize("source", ["bpe.model", "foreign.model"])
def test_a_converted_model_has_the_ids_for_special_words_and_u_2581_too(folder, tmp_path, source):
    """In every reading of ours, and as Hugging Face's library reads the file."""
    foreign = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CODE[0].splitlines()),
        model_writer=foreign,
        vocab_size=500,
        model_type="bpe",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        byte_fallback=True,
        minloglevel=2,
    )
    path = folder / source
    if source == "foreign.model":
        path.write_bytes(foreign.getvalue())
    new, old = convert(path, tmp_path / "new.json"), tokenizers.load(None, path)
    theirs = library.Tokenizer.from_file(str(tmp_path / "new.json"))
    words = ["<eod>", "</s>", "<s>", "<unk>", "\u2581", " \u2581", "\u2581\u2581 "]
    texts = [as_text(text) for text in [*probe(words), *random_texts(9, 300, words)]]
    for text in texts:
        wanted = old.encode(text)
        assert theirs.encode(text).ids == wanted
        assert new.encode(text) == new.encode(text, True) == old.encode(text, True) == wanted
    assert (new.eod, new.vocab_size) == (old.eod, old.vocab_size)


def test_a_conversion_that_would_read_an_added_word_otherwise_is_refused(tmp_path):
    """Ranks have special tokens alone; this word is found in every text."""
    record = trained("gpt2").record()
    record["added_tokens"].append(
        record["added_tokens"][0] | {"id": 1500, "content": "<think>", "special": False}
    )
    (tmp_path / "t.json").write_bytes(dump(record))
    with pytest.raises(UserError, match=r"the ids would differ on 'a<think>.*nothing written"):
        convert(tmp_path / "t.json", tmp_path / "t.tiktoken")
    assert not (tmp_path / "t.tiktoken").exists()


@pytest.mark.parametrize(
    ("source", "output", "options", "law"),
    [
        (
            "unigram.model",
            "x.json",
            {},
            "is a SentencePieceTokenizer that no other format can express",
        ),
        ("bpe.json", "x.model", {}, r"must end in .json .a tokenizer.json. or .tiktoken"),
        ("bpe.json", "x.json", {"split": "gpt2"}, "already defines its split"),
        (
            "bpe.tiktoken",
            "x.json",
            {},
            r"does not say how text is split: give --encoding .r50k_base",
        ),
        (
            "bpe.tiktoken",
            "x.json",
            {"split": "gpt2", "encoding": "llama3"},
            "give either --encoding or --split",
        ),
        (
            "bpe.model",
            "x.tiktoken",
            {},
            "is not a byte-level BPE with a split that other formats know",
        ),
    ],
)
def test_a_conversion_that_loses_is_refused(folder, tmp_path, source, output, options, law):
    with pytest.raises(UserError, match=law):
        convert(folder / source, tmp_path / output, **options)
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_an_id_would_differ(folder, tmp_path):
    record = trained("gpt2").record()
    record["model"]["merges"] = record["model"]["merges"][::-1]
    (tmp_path / "odd.json").write_bytes(dump(record))
    with pytest.raises(UserError, match=r"the ids would differ on .*; nothing written"):
        convert(tmp_path / "odd.json", tmp_path / "odd.tiktoken")
    assert not (tmp_path / "odd.tiktoken").exists()


def test_byte_level_bpe_is_trained_where_a_vocabulary_size_is_given(folder, tmp_path, capsys):
    words = [
        "train",
        "--input",
        str(folder / "code.txt"),
        "--output",
        str(tmp_path / "t.json"),
        "--vocab-size",
        "400",
        "--split",
        "llama3",
        "--special-tokens",
        END,
        "<|pad|>",
    ]
    assert call("tokenizer", words) == 0
    assert capsys.readouterr().out.startswith(
        f"wrote {tmp_path / 't.json'}: HuggingFaceTokenizer, 400 ids, end of doc"
    )
    read = tokenizers.load(None, tmp_path / "t.json")
    assert (read.vocab_size, read.eod, read.pad) == (400, 398, 399)
    assert isinstance(read, HuggingFaceTokenizer) and read.decode(read.encode(CODE[0])) == CODE[0]


def test_the_report_counts_bytes_tokens_and_ids(folder, tmp_path, capsys):
    files = [str(folder / "bpe.json"), str(folder / "bpe.model")]
    words = [
        "report",
        "--tokenizer-model",
        *files,
        "--input",
        str(folder / "two.jsonl"),
        "--group-key",
        "lang",
        "--json",
        str(tmp_path / "r.json"),
        "--picture",
        str(tmp_path / "r.png"),
    ]
    assert call("tokenizer", words) == 0
    assert "bytes per token" in capsys.readouterr().out
    bpe, pieces = json.loads((tmp_path / "r.json").read_text())
    read = tokenizers.load(None, files[0])
    ids = [read.encode(text) for text in ("de Straße", "en street", "de Weg 1")]
    assert bpe["bytes"] == pieces["bytes"] == 27 and bpe["tokens"] == sum(map(len, ids))
    assert bpe["groups"] == {"de": 18 / len([*ids[0], *ids[2]]), "en": 9 / len(ids[1])}
    assert (bpe["ids_used"], bpe["texts_changed"]) == (len({id for text in ids for id in text}), 0)
    longest = max((read.token_bytes(id) for text in ids for id in text), key=len)
    assert bpe["longest_tokens"][0]["bytes"] == len(longest)
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("flags", "law"),
    [
        (["--picture", "x.gif"], "must end in .png or .svg"),
        (["--json", "no/where.json"], "cannot be written"),
    ],
)
def test_a_report_that_cannot_be_written_is_refused(folder, tmp_path, monkeypatch, flags, law):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=law):
        call(
            "tokenizer",
            [
                "report",
                "--tokenizer-model",
                str(folder / "bpe.json"),
                "--input",
                str(folder / "code.txt"),
                *flags,
            ],
        )


def test_no_token_has_no_bytes_per_token():
    usage = Usage("name", "kind", 5, bytes={"de": 4, "en": 6}, tokens={"de": 0, "en": 3})
    assert [usage.bytes_per_token(group) for group in ("de", "en", None)] == [None, 2.0, 10 / 3]
