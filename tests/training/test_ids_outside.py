"""An id outside the vocabulary: refused before the start where it can be known, else when it is read, on any layout."""

import subprocess

import numpy as np
import pytest

from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.samples.build import open_splits
from megascratch.data.tokens.loss_mask import mask_prefix
from megascratch.data.tokens.manifest import write_manifest
from tests.support.corpora import write
from tests.support.pretrain_runs import ENVIRONMENT, command, flags

VOCAB, BAD = 58, 60  # the padded vocabulary has 64
PLACE = "document 20, sequence 20, token 17 has id 60, the vocabulary has 58 (ids 0 to 57)"


def lying(prefix, dtype="uint16", bad=BAD):
    """A corpus whose manifest says that all ids are below 40; one is not."""
    documents = [np.arange(200) % 40 for _ in range(41)]
    documents[20] = documents[20].copy()
    documents[20][17] = bad
    name = write(prefix, documents, dtype)
    itemsize = np.dtype(dtype).itemsize
    write_manifest(name, {"bin_bytes": itemsize * 200 * 41, "min_token": 0, "max_token": 39})
    return name


READINGS = {
    "laid end to end": {},
    "packed": {"packing": "best-fit"},
    "in Megatron's order": {"data_order": "megatron"},
    "fill-in-the-middle": {
        "fim_rate": 1.0,
        "fim_prefix_id": 1,
        "fim_middle_id": 2,
        "fim_suffix_id": 3,
    },
}


@pytest.mark.parametrize("settings", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_way_of_reading_refuses_it_with_its_place(tmp_path, settings, masked):
    prefix = lying(tmp_path / "c")
    if masked:
        write(tmp_path / mask_prefix("c"), [[0] * 200 for _ in range(41)], "uint8")
    data = DataConfig(data_path=[prefix], split="1", seq_length=16, **settings)
    train = open_splits(data, seed=1, vocab_size=VOCAB, train_samples=400).train
    with pytest.raises(UserError) as caught:
        for number in range(len(train)):
            train[number]
    assert PLACE in str(caught.value)


def test_a_negative_id_is_no_token_that_is_not_to_be_learned(tmp_path):
    data = DataConfig(data_path=[lying(tmp_path / "c", "int32", -5)], split="1", seq_length=16)
    train = open_splits(data, seed=1, vocab_size=VOCAB, train_samples=400).train
    with pytest.raises(UserError, match="token 17 has id -5"):
        for number in range(len(train)):
            train[number]


@pytest.mark.parametrize(
    "given", [[], ["--vocab-size", "300"]], ids=["from the tokenizer", "given"]
)
def test_laws_of_the_vocabulary_hold_when_the_tokenizer_tells_its_size(tmp_path, given):
    prefix = write(tmp_path / "c", [[1, 2, 3] * 50] * 20)
    words = flags(
        tmp_path,
        data_path=prefix,
        split="1",
        vocab_size=None,
        tokenizer_type="ByteTokenizer",
        fim_rate=0.5,
    )
    words += ["--fim-prefix-id", "300", "--fim-middle-id", "301", "--fim-suffix-id", "302", *given]
    done = subprocess.run(command(words), capture_output=True, text=True, env=ENVIRONMENT)
    size = 300 if given else 257
    assert done.returncode == 2
    assert (
        f"fim ids (300, 301, 302) must be ids of the vocabulary ({size} ids): use 0 to {size - 1}"
        in done.stderr
    )
    assert "None" not in done.stderr


@pytest.mark.deep
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"tensor_model_parallel_size": 2},
        {"pipeline_model_parallel_size": 2},
        {"data_parallel_size": 2},
    ],
    ids=str,
)
def test_every_layout_says_the_same(tmp_path, layout):
    words = flags(
        tmp_path / "run",
        data_path=lying(tmp_path / "c"),
        split="1",
        vocab_size=VOCAB,
        train_iters=200,
        **layout,
    )
    ranks = ["--nproc-per-node", "2"] if layout else []
    done = subprocess.run(
        command([*words, *ranks]), capture_output=True, text=True, env=ENVIRONMENT
    )
    assert done.returncode != 0
    assert PLACE in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*"))
