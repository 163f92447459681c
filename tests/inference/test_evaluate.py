"""Laws of the evaluation: every token once, with the context that the stride promises, and nothing else in the sum."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from megascratch.config.errors import UserError
from megascratch.inference.evaluate import (
    document_stream,
    evaluate_documents,
    evaluate_stream,
    windows,
)
from megascratch.tokenizer.simple import ByteTokenizer
from tests.support.small_models import KINDS, config_of, full_logits, model_of

TEXTS = ["def f(x):\n    return x\n", "ä", "import os\n" * 4]
IDS = [ByteTokenizer().encode(text) for text in TEXTS]
EOD = 256


@pytest.mark.parametrize("length", [0, 1, 2, 5, 9, 10, 17, 40])
@pytest.mark.parametrize("seq_length", [1, 4, 9])
def test_every_token_but_the_first_is_counted_once_with_the_promised_context(length, seq_length):
    for stride in range(1, seq_length + 1):
        counted = []
        for window in windows(length, seq_length, stride):
            assert (
                window.start >= 0
                and window.stop <= length
                and window.stop - window.start <= seq_length + 1
            )
            for token in range(window.stop - window.counted, window.stop):
                counted.append(token)
                context = token - window.start
                assert context == token or context >= seq_length - stride + 1
        assert counted == list(range(1, length))


def test_documents_of_which_the_tokenizer_makes_no_token_have_no_loss():
    config = config_of()
    for ends in (True, False):
        with pytest.raises(
            UserError,
            match="gives no token for 2 documents with 4 bytes: there is no loss to measure",
        ):
            evaluate_documents(
                model_of(config), config.data, ["  ", "  "], [[], []], EOD, ends=ends
            )


def reference(config, model, stream, stride, eod):
    """Nats by hand: one forward for each token, over its window."""
    total = 0.0
    for window in windows(len(stream), config.data.seq_length, stride):
        logits = full_logits(config, model, stream[window.start : window.stop - 1].tolist(), eod)
        losses = -logits.log_softmax(-1)[range(len(logits)), stream[window.start + 1 : window.stop]]
        total += losses[-window.counted :].sum().item()
    return total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "resets", [(), ("reset_position_ids", "reset_attention_mask", "eod_mask_loss")]
)
def test_the_sum_is_that_of_the_single_tokens(kind, resets):
    config = config_of(**KINDS[kind], **dict.fromkeys(resets, True), attention_dropout=0.5)
    model = model_of(config)
    stream = document_stream(IDS, EOD)
    for stride, batch_size in [(24, 2), (24, 100), (7, 3), (1, 8)]:
        nats = evaluate_stream(
            model, config.data, stream, EOD, stride=stride, batch_size=batch_size
        )
        assert nats == pytest.approx(reference(config, model, stream, stride, EOD), rel=1e-6)


def test_with_a_single_window_the_loss_is_the_forward_of_training():
    config = config_of(seq_length=100)
    model = model_of(config)
    loss = evaluate_documents(model, config.data, TEXTS, IDS, EOD)
    stream = [EOD, *IDS[0], EOD, *IDS[1], EOD, *IDS[2], EOD]
    logits = full_logits(config, model, stream[:-1], EOD)
    nats = torch.nn.functional.cross_entropy(
        logits, torch.tensor(stream[1:]), reduction="sum"
    ).item()
    assert loss.nats == pytest.approx(nats, rel=1e-9)
    assert (loss.tokens, loss.documents, loss.text_bytes) == (len(stream) - 1, 3, 24 + 2 + 40 - 1)
    assert loss.bits_per_byte == pytest.approx(nats / math.log(2) / 65, rel=1e-9)
    assert loss.per_token == pytest.approx(nats / (len(stream) - 1), rel=1e-9)


def test_a_model_that_knows_nothing_costs_the_uniform_code():
    """log2(vocabulary) bits per token, the first one included, with and without ends of documents."""
    config = config_of()
    model = model_of(config)
    for parameter in model.parameters():
        parameter.zero_()
    bits = math.log2(257)
    text_bytes = sum(map(len, IDS))
    with_ends = evaluate_documents(model, config.data, TEXTS, IDS, EOD)
    assert with_ends.tokens == text_bytes + 3
    assert with_ends.bits_per_byte == pytest.approx(bits * (text_bytes + 3) / text_bytes, rel=1e-6)
    for eod, ends in [(None, True), (EOD, False)]:
        without = evaluate_documents(model, config.data, TEXTS, IDS, eod, ends=ends)
        assert (without.tokens, without.bits_per_byte) == (
            text_bytes,
            pytest.approx(bits, rel=1e-6),
        )


def test_more_context_costs_more_windows():
    assert [len(windows(1000, 100, stride)) for stride in (100, 50, 1)] == [10, 19, 900]


@pytest.mark.parametrize("stride", [0, -1, 25])
def test_a_stride_outside_the_window_is_refused(stride):
    config = config_of()
    with pytest.raises(
        UserError, match=r"--stride .* must be from 1 to the model's --seq-length \(24\)"
    ):
        evaluate_stream(model_of(config), config.data, np.arange(9), EOD, stride=stride)


def test_no_text_and_a_model_that_diverged_are_told():
    config = config_of()
    model = model_of(config)
    with pytest.raises(UserError, match="no text"):
        evaluate_documents(model, config.data, [""], [[]], EOD)
    model.final_norm.bias[0] = torch.nan
    with pytest.raises(UserError, match="the loss is nan"):
        evaluate_documents(model, config.data, TEXTS, IDS, EOD)


def test_resets_without_an_end_of_document_are_refused():
    config = config_of()
    config = replace(config, data=replace(config.data, reset_attention_mask=True))
    with pytest.raises(UserError, match="need an end-of-document token"):
        evaluate_documents(model_of(config), config.data, TEXTS, IDS, None)
