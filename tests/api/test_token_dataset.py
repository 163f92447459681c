"""Laws of `ms.Tokenizer`, `ms.preprocess` and `ms.TokenDataset`: text becomes ids and is read back."""

from pathlib import Path

import numpy as np
import pytest

import megascratch as ms
from megascratch.data.tokens.token_files import TokenWriter

TEXTS = ["a first text\n", "the second, a longer one\n", "3"]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number}.txt").write_text(text)
    tokenizer = ms.Tokenizer.train(TEXTS, tmp_path / "chars.json")
    dataset = ms.preprocess(folder, tmp_path / "corpus", tmp_path / "chars.json")
    return tokenizer, dataset


def test_documents_are_the_texts_with_their_ends(corpus):
    tokenizer, dataset = corpus
    assert len(dataset) == 3 and dataset.tokens == sum(map(len, TEXTS)) + 3
    assert dataset.lengths.tolist() == [len(text) + 1 for text in TEXTS]
    for text, document in zip(TEXTS, dataset, strict=True):
        assert document.tolist() == [*tokenizer.encode(text), tokenizer.eod]
        assert tokenizer.decode(document) == text
    assert [len(document) for document in dataset[-2:]] == [len(text) + 1 for text in TEXTS[1:]]
    assert dataset.manifest["tokenizer"]["fingerprint"] == tokenizer.fingerprint
    assert ms.TokenDataset(dataset.prefix)[-1].tolist() == dataset[2].tolist()


def test_ids_are_views_that_cannot_be_written(corpus):
    _, dataset = corpus
    assert dataset[0].base is not None and dataset.dtype == np.uint16
    with pytest.raises(ValueError, match="read-only"):
        dataset[0][0] = 1


def test_a_document_of_several_sequences_is_whole(tmp_path):
    with TokenWriter(tmp_path / "x", np.uint16) as writer:
        writer.add_document([1, 2, 3], [1, 2])
        writer.add_document([])
        writer.add_document([4])
    dataset = ms.TokenDataset(tmp_path / "x")
    assert [document.tolist() for document in dataset] == [[1, 2, 3], [], [4]]
    assert dataset.lengths.tolist() == [3, 0, 1] and dataset.manifest is None
    with pytest.raises(ValueError, match="read-only"):
        dataset[0][0] = 9


def test_damage_is_found_and_numbers_outside_are_refused(corpus):
    _, dataset = corpus
    for number in (3, -4):
        with pytest.raises(IndexError, match="has 3 documents"):
            dataset[number]
    file = Path(f"{dataset.prefix}.bin")
    first, *rest = file.read_bytes()
    file.write_bytes(bytes([first ^ 1, *rest]))
    with pytest.raises(ms.UserError, match="damaged"):
        ms.TokenDataset(dataset.prefix).check()
    with pytest.raises(ms.UserError, match="cannot be read"):
        ms.TokenDataset("no/such")


def test_a_tokenizer_of_every_suffix_is_trained_loaded_and_equal(tmp_path):
    texts = [" ".join(f"word{number}" for number in range(200))] * 3
    for name, size in (("a.model", 280), ("a.json", 280), ("b.json", None)):
        trained = ms.Tokenizer.train(texts, tmp_path / name, size)
        loaded = ms.Tokenizer.load(tmp_path / name)
        assert loaded == trained and loaded.decode(loaded.encode("word7")) == "word7"
        assert loaded.encode(["word1", "word2"]) == [loaded.encode("word1"), loaded.encode("word2")]
    assert len(ms.Tokenizer.load(None, "ByteTokenizer")) == 257
    with pytest.raises(ms.UserError, match=r"must end in .model"):
        ms.Tokenizer.train(texts, tmp_path / "a.txt", 300)
