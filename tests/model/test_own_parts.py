"""Parts that a user registers: the right ones train alike on every layout, the wrong ones are refused before a run."""

import re
from pathlib import Path

import pytest

from megascratch.config.errors import UserError
from megascratch.config.imports import run_imports
from megascratch.config.registry import REGISTERED
from megascratch.layers.norm import RMSNorm
from megascratch.model.flops import parameters
from megascratch.model.own_parts import require_own_parts
from megascratch.pipeline.passes import compile_order
from megascratch.verification.run_layout import gather, one_process
from tests.support.layout_runs import STEPS, assert_same, config_of, trace, train_on_rank
from tests.support.own_parts import ALL_KINDS, SETTINGS, WRONG
from tests.support.small_models import model_of


def imported(folder: Path, text: str) -> str:
    file = folder / f"parts_of_{folder.name}.py"
    file.write_text(text)
    run_imports([str(file)])
    return str(file)


LAYOUTS = {
    "tp2, sequence parallel": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "pp2 of uneven stages, dp2, zero1": {
        "pipeline_model_parallel_size": 2,
        "decoder_first_pipeline_num_layers": 2,
        "pipeline_schedule": "all_forwards_first",
        "data_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
}


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param("tp2, sequence parallel", marks=pytest.mark.deep),
        "pp2 of uneven stages, dp2, zero1",
    ],
)
def test_a_model_of_registered_parts_is_the_same_on_every_layout(layout, tmp_path):
    """The ranks have read no settings: they import what the config names."""
    model = {**SETTINGS, "num_layers": 5, "global_batch_size": 4, "hidden_dropout": 0.1}
    source = imported(tmp_path, ALL_KINDS)
    config = config_of(**model, **LAYOUTS[layout], imports=[source])
    one = gather([train_on_rank(one_process(config), STEPS)])
    assert_same(one, trace(config, STEPS, train_on_rank), 1e-9)


def test_a_pattern_is_repeated_over_the_layers_of_the_whole_model(tmp_path):
    imported(tmp_path, ALL_KINDS)
    config = config_of(**SETTINGS, num_layers=5)
    table = dict(model_of(config).named_parameters())
    kinds = {name.split(".")[1:3][0]: set() for name in table if name.startswith("layers")}
    for name in table:
        if name.startswith("layers"):
            _, layer, kind, *_ = name.split(".")
            kinds[layer].add(kind)
    found = [kinds[str(layer)] - {"norm1", "norm2"} for layer in range(5)]
    assert found == [
        {"attention", "mlp"},
        {"shift", "mlp"},
        {"attention", "gated"},
        {"shift", "mlp"},
        {"attention", "mlp"},
    ]


def test_options_reach_the_parts(tmp_path):
    imported(tmp_path, ALL_KINDS)
    model = model_of(config_of(**SETTINGS, num_layers=3))
    assert model.layers["1"].shift.read.weight.shape[0] == 16
    assert float(model.layers["0"].norm1.gain.detach()[0]) == 0.5
    plain = model_of(config_of(**SETTINGS | {"layer_options": None}, num_layers=3))
    assert plain.layers["1"].shift.read.weight.shape[0] == 32
    fewer = parameters(config_of(**SETTINGS, num_layers=3).model)
    more = parameters(config_of(**SETTINGS | {"layer_options": None}, num_layers=3).model)
    assert more - fewer == 2 * 16 * model.model.hidden_size


def test_a_name_of_the_package_stays_what_it_is(tmp_path, monkeypatch):
    """A table that somebody filled by hand does not win over the package's."""
    imported(tmp_path, ALL_KINDS)
    monkeypatch.setitem(REGISTERED["norm"], "RMSNorm", REGISTERED["norm"]["ScaleNorm"])
    model = model_of(config_of(normalization="RMSNorm", num_layers=1))
    assert isinstance(model.layers["0"].norm1, RMSNorm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"normalization": "NoShard"}, r"the norm NoShard: the weight gain \[32\] has no Shard"),
        (
            {"normalization": "HalfAShard"},
            r"the weight gain is \[32\] on each of 1 tensor ranks, its Shard is of \[64\] as a whole",
        ),
        (
            {"normalization": "Crashes"},
            r"the layers with Crashes fail: .*parts_of_.*:\d+: RuntimeE",
        ),
        (
            {"normalization": "WrongShape"},
            r"WrongShape must return the shape of its input \[s, b, h",
        ),
        ({"activation_function": "none"}, "the layers with none fail: "),
        (
            {"mixers": ["no_mixer"]},
            "no_mixer must be a subclass of megascratch.layers.sublayer.Mix",
        ),
        ({"optimizer": "idle"}, "the optimizer idle leaves the weights as they are: update"),
        ({"optimizer": "uncounted"}, "the optimizer uncounted has steps 0 after one step: it must"),
        ({"optimizer": "explodes"}, "the optimizer explodes makes weights that are not finite"),
        (
            {"optimizer": "needs_a_weight"},
            r"the optimizer needs_a_weight fails: .*:\d+: IndexError",
        ),
        (
            {"lr_decay_style": "rises"},
            "the learning-rate curve rises is 1.001 at 0.001: it must be",
        ),
        ({"lr_decay_style": "vanishes"}, "the learning-rate curve vanishes is nan at 0.501"),
        ({"lr_decay_style": "divides"}, "the learning-rate curve divides is 1.001 at 0.001"),
    ],
)
def test_a_wrong_part_is_refused_by_name(settings, message, tmp_path):
    imported(tmp_path, WRONG)
    config = config_of(num_layers=1, **settings)
    with pytest.raises(UserError, match=message) as caught:
        require_own_parts(config.model, config.optim, config.data.seq_length)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ("gap", "the schedule gap is wrong with 2 stages and 2 micro-batches: rank 0 lacks B0"),
        ("circle", "the schedule circle is wrong with 2 stages and 2 micro-batches: rank 1 "),
        ("words_only", "rank 0 has F0, which is not Action(op, microbatch, chunk) with op of F, B"),
        (
            "divides_ranks",
            "the schedule divides_ranks fails with 2 stages and 2 micro-batches: Zero",
        ),
    ],
)
def test_a_wrong_schedule_is_refused_by_rank_and_action(schedule, message, tmp_path):
    imported(tmp_path, WRONG)
    with pytest.raises(UserError, match=re.escape(message)):
        compile_order(schedule, 2, 2)


def test_a_schedule_that_is_registered_again_is_the_new_one(tmp_path):
    """As when a cell of a notebook is run again: orders are cached by function, not by name."""
    imported(tmp_path, ALL_KINDS)
    first = compile_order("all_forwards_first", 2, 3)
    imported(tmp_path, ALL_KINDS.replace("forwards + [Action", "forwards[:0] + [Action"))
    with pytest.raises(UserError, match="lacks F0"):
        compile_order("all_forwards_first", 2, 3)
    imported(tmp_path, ALL_KINDS)
    assert compile_order("all_forwards_first", 2, 3) == first
