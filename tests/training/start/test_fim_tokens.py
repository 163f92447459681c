"""Fill-in-the-middle tokens by name are looked up in the tokenizer before ranks start."""

import numpy as np
import pytest

from megascratch.config.errors import Problems, UserError
from megascratch.config.load import read_config
from megascratch.config.resolve import Found
from megascratch.tokenizer.registry import dump
from megascratch.tokenizer.vocabulary import Vocabulary
from megascratch.training.start.inputs import open_inputs
from megascratch.training.start.settings import legal_settings
from tests.support.corpora import write
from tests.support.pretrain_runs import flags

SPECIALS = {"<|endoftext|>": 256, "<fim_prefix>": 257, "<fim_middle>": 258, "<fim_suffix>": 259}
BY_ID = {"fim-prefix-id": 257, "fim-middle-id": 258, "fim-suffix-id": 259}
BY_NAME = {f"fim-{part}-token": f"<fim_{part}>" for part in ("prefix", "middle", "suffix")}


def opened(folder, **settings):
    """What a run reads: 20 documents, a byte-level tokenizer with the special tokens, every document rearranged."""
    tokens = {bytes([byte]): byte for byte in range(256)}
    (folder / "t.json").write_bytes(dump(Vocabulary(tokens, [], "gpt2", SPECIALS).record()))
    prefix = write(folder / "c", [[1, 2, 3] * 50] * 20)
    of_run = {"data_path": prefix, "split": "1", "vocab_size": None, "fim_rate": 1.0}
    given = {**of_run, "tokenizer_model": folder / "t.json"} | settings
    words = flags(folder, **given)[1:]
    return open_inputs(legal_settings(read_config(words), 1), Found(), Problems())


def test_names_read_the_samples_that_ids_read(tmp_path):
    named = opened(tmp_path, **BY_NAME)
    by_id = opened(tmp_path, **BY_ID)
    for number in range(9):
        assert np.array_equal(named.splits.train[number], by_id.splits.train[number])
    assert 258 in named.splits.train[0]
    assert named.config.data.fim_middle_id is None  # the checkpoint keeps what the user gave


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"fim-middle-token": "<fim-middle>"}, "did you mean <fim_middle>"),
        ({"fim-middle-token": "qqqq"}, "give the ids of three tokens that no text uses"),
        (
            {"fim-middle-token": "<|endoftext|>", "fim-suffix-token": None, "fim-suffix-id": 256},
            "must differ",
        ),
        ({"tokenizer_model": None, "vocab_size": 300}, "needs a tokenizer"),
    ],
)
def test_a_name_that_the_tokenizer_does_not_have_is_refused(tmp_path, given, told):
    with pytest.raises(UserError) as caught:
        opened(tmp_path, **BY_NAME | given)
    assert told in str(caught.value)
