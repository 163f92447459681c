"""A part that is not parallel is named, with the smallest layout that shows it and the axis that it needs."""

import pytest

from megascratch.config.fields import flat
from megascratch.config.imports import run_imports
from megascratch.verification.culprit import AXES, NO_GRAD_SUM, OF_AN_OPTIMIZER, SEQUENCE, explain
from megascratch.verification.layouts import Case
from megascratch.verification.verify import verify_case
from tests.support.layout_runs import config_of
from tests.support.own_parts import HEAD
from tests.support.rank_pool import session_pool

CAUSES = {axis.words: axis.cause for axis in AXES}
TP2 = {"tensor_model_parallel_size": 2}
SP2 = {**TP2, "sequence_parallel": True}
PP2 = {"pipeline_model_parallel_size": 2, "global_batch_size": 4}

WRONG = (
    HEAD
    + '''

@register("norm", "Forgets")
class Forgets(nn.Module):
    def __init__(self, hidden_size, epsilon, *, bias, grad_sum):
        super().__init__()
        self.shards = {"gain": Shard((hidden_size,), role="norm", fill=1.0)}
        self.gain = nn.Parameter(torch.empty(hidden_size))

    def forward(self, x):
        return x / x.norm(dim=-1, keepdim=True) * self.gain


class Scaled(Mixer):
    """x * w * scale(x), whatever the scale is."""

    def __init__(self, model, site):
        super().__init__()
        grad_sum = ("tp",) if site.sequence_parallel and site.tp.size > 1 else ()
        self.shards = {"w": Shard((site.hidden_size,), role="norm", std=0.1, grad_sum=grad_sum)}
        self.w = nn.Parameter(torch.empty(site.hidden_size))
        self.before = 1.0

    def forward(self, x, context):
        return x * self.w * self.scale(x)


@register("mixer", "counts_places")
class CountsPlaces(Scaled):
    def scale(self, x):
        return torch.arange(len(x), dtype=x.dtype)[:, None, None]


@register("mixer", "throws_dice")
class ThrowsDice(Scaled):
    def scale(self, x):
        return torch.rand(x.shape[0], 1, 1, dtype=x.dtype)


@register("mixer", "remembers")
class Remembers(Scaled):
    def scale(self, x):
        before, self.before = self.before, float(x.detach().mean())
        return before


@register("feed_forward", "local_norm")
class LocalNorm(Sublayer):
    def __init__(self, model, site):
        super().__init__()
        same = {"bias": False, "sequence_parallel": site.sequence_parallel}
        self.up = ColumnParallelLinear(site.hidden_size, 16, site.tp, std=site.std, **same)
        self.down = RowParallelLinear(16, site.hidden_size, site.tp, std=site.output_std, **same)

    def forward(self, x, context):
        y = self.up(x)
        return self.down(y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt())


@register("optimizer", "of_the_stretch")
class OfTheStretch(Optimizer):
    state_names = ()
    steps = 0

    def __init__(self, stretches, optim):
        self.stretches = stretches

    def step(self, lr):
        self.steps += 1
        for stretch in self.stretches:
            stretch.weight.sub_(lr * stretch.grad / (stretch.grad.norm() + 1))
'''
)


@pytest.mark.parametrize(
    ("settings", "layout", "part", "axis", "cause"),
    [
        ({"normalization": "Forgets"}, SP2, "norm Forgets", SEQUENCE.words, NO_GRAD_SUM),
        pytest.param(
            {"mixers": ["attention", "counts_places"]},
            SP2,
            "mixer counts_places",
            SEQUENCE.words,
            None,
            marks=pytest.mark.deep,
        ),
        pytest.param(
            {"feed_forwards": ["local_norm"]},
            TP2,
            "feed-forward local_norm",
            "tensor parallel",
            None,
            marks=pytest.mark.deep,
        ),
        (
            {"mixers": ["throws_dice"], "feed_forwards": ["mlp"]},
            {},
            "mixer throws_dice",
            "the same run again",
            None,
        ),
        pytest.param(
            {"mixers": ["remembers"]},
            PP2,
            "mixer remembers",
            "two micro-batches in place",
            None,
            marks=pytest.mark.deep,
        ),
        pytest.param(
            {"optimizer": "of_the_stretch"},
            TP2,
            "optimizer of_the_stretch",
            "tensor parallel",
            OF_AN_OPTIMIZER,
            marks=pytest.mark.deep,
        ),
    ],
)
def test_the_part_the_axis_and_the_usual_cause_are_named(
    settings, layout, part, axis, cause, tmp_path
):
    file = tmp_path / "wrong_parts.py"
    file.write_text(WRONG)
    run_imports([str(file)])
    config = config_of(num_layers=2, **settings, **layout, imports=[str(file)])
    verdict = verify_case(Case.of(flat(config)), 2, "fp64", session_pool())
    lines = explain([verdict], "fp64", session_pool())
    assert not verdict.passed
    assert lines[0] == f"wrong: the {part}"
    assert " in place of " in lines[1]
    found = lines[3].removeprefix("  what makes it differ: ")
    assert found.startswith(axis)
    assert lines[4] == f"  the usual cause: {cause or CAUSES[found]}"


def test_where_no_part_is_the_users_own_nothing_is_guessed():
    verdict = verify_case(Case.of(flat(config_of(num_layers=2))), 2, "fp64", session_pool())
    assert explain([verdict], "fp64", session_pool()) == []
