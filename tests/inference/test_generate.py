"""Laws of generation: the cache changes nothing, the batch changes nothing, the seed decides everything."""

import pytest
import torch

from megascratch.config.errors import UserError
from megascratch.inference.generate import Continuation, _generator, generate, pick
from megascratch.inference.sampling import Sampling
from tests.support.contexts import next_tokens
from tests.support.small_models import KINDS, config_of, full_logits, model_of

GREEDY = Sampling(temperature=0)
PROMPTS = [[5], [7, 8, 9, 10, 11, 12, 13], [200, 3], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]]
EOD = 256


@pytest.mark.parametrize("kind", KINDS)
def test_logits_from_the_cache_equal_those_of_the_full_forward(kind):
    config = config_of(**KINDS[kind])
    model = model_of(config)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    expected = full_logits(config, model, ids)
    cache, at = model.new_cache(), 0
    for length in (4, 1, 1, 3, 2):  # the prompt, single tokens, and several at once
        newest = torch.tensor([ids[at : at + length]])
        got = model.next_logits(newest, next_tokens(newest, at, cache=cache))
        at += length
        assert (got[0] - expected[at - 1]).abs().max() < 1e-10


@pytest.mark.parametrize("resets", [{}, {"reset_position_ids": True, "reset_attention_mask": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_the_likeliest_of_the_full_forward(kind, resets):
    """Also behind ends of documents, where attention and positions may start anew."""
    config = config_of(**KINDS[kind], **resets)
    model = model_of(config)
    for prompt in ([5, 6, 7], [EOD], [5, EOD, 8], [1, EOD, EOD]):
        (found,) = generate(model, config.data, [prompt], 8, GREEDY, EOD)
        ids = list(prompt)
        for token in found.tokens:
            assert token == full_logits(config, model, ids, EOD)[-1].argmax()
            ids.append(token)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_k=50, top_p=0.9)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_gives_in_a_batch_what_it_gives_alone(kind, sampling):
    config = config_of(**KINDS[kind], reset_attention_mask=True)
    model = model_of(config)
    together = generate(model, config.data, [*PROMPTS, [EOD]], 9, sampling, EOD)
    for number, prompt in enumerate([*PROMPTS, [EOD]]):
        assert generate(model, config.data, [prompt], 9, sampling, EOD, first_number=number) == [
            together[number]
        ]


def test_it_stops_at_the_end_of_document_and_the_others_go_on():
    config = config_of()
    model = model_of(config)
    free = generate(model, config.data, PROMPTS, 8, GREEDY, None)
    end = free[1].tokens[2]
    stopped = generate(model, config.data, PROMPTS, 8, GREEDY, end)
    for before, after in zip(free, stopped, strict=True):
        if end in before.tokens:
            assert after.tokens == before.tokens[: before.tokens.index(end) + 1]
            assert after.stopped_by == "end of document"
        else:
            assert after.tokens == before.tokens and after.stopped_by == "max_new_tokens"


def test_what_stops_one_prompt_of_a_batch_lets_the_others_go_on():
    config = config_of()
    model = model_of(config)
    free = generate(model, config.data, PROMPTS, 8, GREEDY, None)

    def stop(number, tokens):
        return "stop text" if (number, len(tokens)) == (1, 3) else None

    found = generate(model, config.data, PROMPTS, 8, GREEDY, None, stop=stop)
    assert found == [free[0], Continuation(free[1].tokens[:3], "stop text"), *free[2:]]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, top_k=50)])
def test_learned_positions_crop_the_context_to_the_last_ones(sampling):
    """24 positions, prompts of 1 to 30 tokens in one batch, 40 new ones: each token is that of a plain loop that runs
    the training forward over the last 24 tokens, without a cache."""
    config = config_of()
    model = model_of(config)
    prompts = [*PROMPTS, [*range(30)]]
    found = generate(model, config.data, prompts, 40, sampling, None)
    for number, (prompt, continuation) in enumerate(zip(prompts, found, strict=True)):
        generator = _generator(sampling.seed, number)
        ids = list(prompt)
        for token in continuation.tokens:
            scores = full_logits(config, model, ids[-24:])[-1]
            assert token == pick(scores, sampling, generator)
            ids.append(token)
        assert (len(continuation.tokens), continuation.stopped_by) == (40, "max_new_tokens")
        assert continuation.cropped


@pytest.mark.parametrize("resets", [{"reset_position_ids": True}, {"reset_attention_mask": True}])
def test_a_document_that_begins_again_at_position_0_is_cropped_when_it_is_full(resets):
    """Documents of 3 tokens never fill a table that each of them reads from its beginning."""
    config = config_of(**resets)
    model = model_of(config)
    prompt = [1, 2, EOD] * 12
    (found,) = generate(model, config.data, [prompt], 1, GREEDY, EOD)
    restarts = "reset_position_ids" in resets
    seen = prompt if restarts else prompt[-24:]
    assert found.cropped is not restarts
    assert found.tokens == [full_logits(config, model, seen, EOD)[-1].argmax()]


def test_rotary_positions_have_no_end():
    """Nothing is cropped: 30 tokens after a prompt of 25, with 24 tokens per sample in training."""
    config = config_of(**KINDS["rotary"])
    model = model_of(config)
    (long,) = generate(model, config.data, [[1] * 25], 30, GREEDY, None)
    assert (len(long.tokens), long.stopped_by, long.cropped) == (30, "max_new_tokens", False)
    whole = [*[1] * 25, *long.tokens]
    assert full_logits(config, model, whole[:-1])[-1].argmax() == whole[-1]


def test_the_seed_decides_the_draws():
    config = config_of()
    model = model_of(config)
    first, again, other = (
        generate(model, config.data, PROMPTS, 12, Sampling(2.0, seed=s), EOD) for s in (1, 1, 2)
    )
    assert first == again != other
    same_prompt = generate(model, config.data, [[5]] * 3, 12, Sampling(2.0), EOD)
    assert len({tuple(f.tokens) for f in same_prompt}) == 3


def frequencies(logits, sampling, draws=4000):
    generator = torch.Generator().manual_seed(0)
    count = torch.zeros(len(logits))
    for _ in range(draws):
        count[pick(logits, sampling, generator)] += 1
    return count / draws


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_k=9), [0.1, 0.4, 0.2, 0.3]),
        (Sampling(top_p=0.69), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(top_p=0.71), [0, 4 / 9, 2 / 9, 3 / 9]),
        (Sampling(top_p=1e-9), [0, 1, 0, 0]),
        (Sampling(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7]),
        (Sampling(temperature=0.5), [1 / 30, 16 / 30, 4 / 30, 9 / 30]),
        (Sampling(temperature=1e-300), [0, 1, 0, 0]),
        (Sampling(temperature=0), [0, 1, 0, 0]),
    ],
)
def test_tokens_come_as_often_as_their_probability_says(sampling, expected):
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3], dtype=torch.float64).log() + 3
    found = frequencies(logits, sampling)
    assert (found - torch.tensor(expected)).abs().max() < 0.03
    assert not found[torch.tensor(expected) == 0].any()


@pytest.mark.parametrize(
    ("numbers", "complaint"),
    [
        ({"temperature": -0.1}, "--temperature (-0.1)"),
        ({"temperature": float("nan")}, "--temperature (nan)"),
        ({"temperature": float("inf")}, "--temperature (inf)"),
        ({"top_k": -1}, "--top-k (-1)"),
        ({"top_p": 0.0}, "--top-p (0.0)"),
        ({"top_p": 1.01}, "--top-p (1.01)"),
        ({"seed": -1}, "--seed (-1)"),
    ],
)
def test_a_number_outside_its_range_is_refused(numbers, complaint):
    with pytest.raises(UserError) as raised:
        Sampling(**numbers)
    assert complaint in str(raised.value)


def test_a_model_that_diverged_is_told():
    config = config_of()
    model = model_of(config)
    model.final_norm.weight[0] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        generate(model, config.data, PROMPTS, 3, GREEDY, None)


def test_an_id_that_the_tokenizer_does_not_have_is_never_chosen():
    """A model may have more ids than its tokenizer; hot sampling would choose most of them."""
    config = config_of(**KINDS[next(iter(KINDS))])
    model = model_of(config)
    (free,) = generate(model, config.data, [[5]], 40, Sampling(9.0), None)
    (kept,) = generate(model, config.data, [[5]], 40, Sampling(9.0), None, known_ids=50)
    assert max(free.tokens) >= 50 > max(kept.tokens)
