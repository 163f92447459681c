"""Laws of `ms.load`: logits are those of the cache, text is that of the command, losses are those of the logits."""

import math

import pytest
import torch

import megascratch as ms
from megascratch.commands import main
from tests.support.contexts import next_tokens
from tests.support.small_models import save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ms.load(folder, device="cpu")


def test_logits_are_those_of_the_cache_token_by_token_without_padding(model):
    """The table has 264 rows for 257 ids."""
    ids = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]
    found = model.logits(ids)
    assert found.shape == (2, 5, 257)
    cache = model.module.new_cache()
    for at in range(5):
        newest = torch.tensor(ids)[:, at : at + 1]
        with torch.inference_mode():
            expected = model.module.next_logits(newest, next_tokens(newest, at, cache=cache))
        assert (found[:, at] - expected).abs().max() < 1e-10


def test_logits_have_the_shape_of_the_ids(model):
    both = model.logits([[1, 2, 3], [4, 5, 6]])
    for one in (
        [4, 5, 6],
        torch.tensor([4, 5, 6]),
        torch.tensor([4, 5, 6], dtype=torch.int16).numpy(),
    ):
        assert torch.equal(model.logits(one), model.logits([[4, 5, 6]])[0])
        assert torch.allclose(model.logits(one), both[1], atol=1e-12)


@pytest.mark.parametrize(
    ("ids", "complaint"),
    [
        ([[1, 2], [3]], "of equal length"),
        ([1.5], "whole numbers, not float32"),
        ("ab", "whole numbers"),
        ([257], "id 257 is outside the model's vocabulary (0 to 256)"),
        ([[1, -1]], "id -1 is outside"),
        ([], "give at least one"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), "[s] or [b, s], not [1, 1, 1]"),
        ([1] * 25, "25 positions, the model has 24"),
    ],
)
def test_ids_that_cannot_be_are_refused(model, ids, complaint):
    with pytest.raises(ms.UserError) as raised:
        model.logits(ids)
    assert complaint in str(raised.value)


def test_a_text_is_that_of_the_command_with_the_same_seed(model, folder, capsys):
    flags = [
        "--seed",
        "7",
        "--top-k",
        "40",
        "--max-new-tokens",
        "9",
        "--stop",
        "e",
        "--prompt",
        "abc",
    ]
    assert main(["generate", "--load", str(folder), "--device", "cpu", *flags]) == 0
    found = model.generate("abc", seed=7, top_k=40, max_new_tokens=9, stop="e")
    assert f"{found}\n" == capsys.readouterr().out


def test_a_text_gives_a_record_and_a_list_gives_a_list(model):
    alone = model.generate("ab", max_new_tokens=4, temperature=0)
    several = model.generate(["ab", "x"], max_new_tokens=4, temperature=0, batch_size=1)
    assert several[0] == alone and len(several) == 2 and model.generate([]) == []
    assert alone.tokens == tuple(model.tokenizer.encode(alone.text)) or "\ufffd" in alone.text
    assert model.generate(max_new_tokens=1).prompt == ""


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens (0) must be at least 1"),
        ({"batch_size": 0}, "batch_size (0)"),
        ({"top_p": 2.0}, "--top-p (2.0)"),
        ({"stop": ""}, "--stop is empty"),
        ({"stop_ids": [999]}, "999 is outside the vocabulary"),
    ],
)
def test_options_outside_their_range_are_refused(model, options, complaint):
    with pytest.raises(ms.UserError) as raised:
        model.generate("a", **options)
    assert complaint in str(raised.value)


def test_the_loss_is_that_of_the_logits(model, tmp_path):
    """In one window: cross entropy of each token and of the end of the document, after an end of document."""
    text = "held-out text"
    ids = [256, *text.encode(), 256]
    logp = model.logits(ids[:-1]).log_softmax(-1)
    nats = -sum(logp[at, token].item() for at, token in enumerate(ids[1:]))
    file = tmp_path / "a.jsonl"
    file.write_text('{"body": "held-out text"}\n')
    for found in (
        model.evaluate(text),
        model.evaluate([text]),
        model.evaluate(files=file, key="body"),
    ):
        assert math.isclose(found.nats, nats, rel_tol=1e-10)
        assert (found.tokens, found.documents, found.text_bytes) == (14, 1, 13)
    with pytest.raises(ms.UserError, match=r"a.jsonl:1: "):
        model.evaluate(files=[file])
    with pytest.raises(ms.UserError, match="no text"):
        model.evaluate()


def test_what_is_known_of_a_model(model):
    shapes = sum(weight.numel() for weight in model.module.parameters())
    padding = 7 * 16  # rows of the table
    assert model.parameter_count == shapes - padding
    assert (model.config.num_layers, model.tokenizer.vocab_size, model.device.type) == (
        2,
        257,
        "cpu",
    )


def test_a_path_without_a_checkpoint_is_refused(tmp_path):
    with pytest.raises(ms.UserError, match="no checkpoint"):
        ms.load(tmp_path)
