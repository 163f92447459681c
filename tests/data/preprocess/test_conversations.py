"""A conversation's mask covers what the learned roles said, and reaches the loss through whatever moves tokens."""

import json

import numpy as np
import pytest

from megascratch.commands import main
from megascratch.config.errors import UserError
from megascratch.config.settings import DataConfig
from megascratch.data.preprocess.conversations import (
    Message,
    Template,
    encode_conversation,
    messages_of,
)
from megascratch.data.samples.batch import collate
from megascratch.data.samples.build import open_splits
from megascratch.data.text.jsonl import BadLine
from megascratch.data.tokens.loss_mask import Masked, mask_prefix
from megascratch.data.tokens.token_files import TokenReader
from megascratch.tokenizer import load
from tests.support.corpora import counting, write

TOKENIZER = load("ByteTokenizer", None, None)
TALK = [
    Message("user", "2+2?"),
    Message("assistant", "4"),
    Message("user", "hm"),
    Message("assistant", "é"),
]


def learned_text(ids, mask):
    return bytes(
        int(token) for token, bit in zip(ids, mask, strict=True) if bit and token < 256
    ).decode()


@pytest.mark.parametrize(
    ("roles", "text"),
    [(("assistant",), "4<end>é<end>"), (("user", "assistant"), "2+2?<end>4<end>hm<end>é<end>")],
)
def test_what_learned_roles_said_is_learned_with_its_end(roles, text):
    template = Template("<{role}>", "<end>", roles)
    tokens = encode_conversation(TALK, TOKENIZER, template)
    whole = "<user>2+2?<end><assistant>4<end><user>hm<end><assistant>é<end>"
    assert learned_text(tokens.ids, np.ones(len(tokens.ids))) == whole
    assert learned_text(tokens.ids, tokens.mask) == text
    assert (tokens.ids[-1], tokens.mask[-1]) == (TOKENIZER.eod, 1)


def test_the_end_of_document_is_learned_only_behind_a_learned_role():
    assert encode_conversation([*TALK, Message("user", "?")], TOKENIZER, Template()).mask[-1] == 0


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no key 'messages'"),
        ({"messages": []}, "no list of messages"),
        ({"messages": "hello"}, "no list of messages"),
        ({"messages": ["hello"]}, "message 1 is not an object"),
        ({"messages": [{"role": "user", "content": None}]}, "message 1 needs a role and a content"),
    ],
)
def test_a_record_that_is_no_conversation_is_a_bad_line(record, reason):
    with pytest.raises(BadLine, match=reason):
        messages_of(record, "messages")


def test_a_conversation_without_a_learned_role_is_a_bad_line():
    with pytest.raises(
        BadLine, match="nothing to learn: its roles are user, learned are assistant"
    ):
        encode_conversation(TALK[:1], TOKENIZER, Template())


def test_the_verb_writes_corpus_and_mask_which_training_reads(tmp_path, capsys):
    lines = [
        json.dumps({"messages": [{"role": role, "content": content} for role, content in TALK]}),
        "no json",
        json.dumps({"messages": [{"role": "assistant", "content": f"answer {'x' * 40}"}]}),
    ]
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    prefix = str(tmp_path / "chat")
    words = [
        "--input",
        f"{prefix}.jsonl",
        "--output-prefix",
        prefix,
        "--tokenizer-type",
        "ByteTokenizer",
    ]
    assert main(["conversations", *words]) == 0
    said = capsys.readouterr()
    assert (
        "2 conversations" in said.out
        and "1 bad lines" in said.out
        and ":2: broken JSON" in said.err
    )
    data = DataConfig(data_path=[prefix], split="1", seq_length=400, packing="best-fit")
    train = open_splits(
        data, seed=1, vocab_size=300, fingerprint=TOKENIZER.fingerprint, train_samples=1
    ).train
    batch = collate([train[0]], [0], 400, TOKENIZER.eod, reset_attention_mask=True)
    text = learned_text(batch.labels[0].tolist(), batch.loss_mask[0].tolist())
    ends = [f"answer {'x' * 40}<|im_end|>\n", "4<|im_end|>\né<|im_end|>\n"]
    assert text in ("".join(ends), "".join(ends[::-1]))
    assert batch.ids.min() >= 0 and batch.labels.min() >= 0
    assert len(batch.document_starts.unique()) == 2  # an end of document is a boundary


def test_without_a_conversation_nothing_is_written(tmp_path, capsys):
    (tmp_path / "chat.jsonl").write_text("{}\n")
    words = ["--input", str(tmp_path / "chat.jsonl"), "--output-prefix", str(tmp_path / "out")]
    assert main(["conversations", *words, "--tokenizer-type", "ByteTokenizer"]) == 2
    assert "1 bad lines; nothing written" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["chat.jsonl"]


def test_a_mask_of_another_corpus_is_refused(tmp_path):
    prefix = counting(tmp_path / "c", [3, 4])
    for lengths, value in (([3, 5], 1), ([3, 4], 2)):
        write(tmp_path / "c_loss_mask", [[value] * length for length in lengths], "uint8")
        with pytest.raises(UserError, match="c_loss_mask is not a loss mask of"):
            Masked(TokenReader(prefix))
    assert mask_prefix(prefix) == f"{prefix}_loss_mask"


def test_a_token_that_is_read_and_not_learned_is_its_complement():
    batch = collate([np.array([5, ~6, 7, ~8])], [0], 4, None)
    assert batch.ids.tolist() == [[5, 6, 7, 8]] and batch.labels.tolist() == [[6, 7, 8, 0]]
    assert batch.loss_mask.tolist() == [[0, 1, 0, 0]]
