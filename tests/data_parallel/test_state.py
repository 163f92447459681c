"""What survives: boxes of whole tensors, covered once, loaded by any other layout."""

from itertools import product

import pytest
import torch

from tests.support import synthetic_grads
from tests.support.rank_pool import on_ranks

CASES = [
    (flavour, layout)
    for flavour, layout in product(
        ["ddp", "zero1"],
        [{"dp": 4}, {"tp": 4, "dp": 2}, {"pp": 2, "dp": 2}, {"tp": 2, "pp": 2, "dp": 2}],
    )
]


def ranks(layout):
    return torch.Size(layout.values()).numel()


def saved(flavour, layout, steps=0, dtype=torch.float64):
    """All held boxes of this rank, after some steps, and the numbers beside them."""
    model, stage, shards = synthetic_grads.build(flavour, layout, 100, dtype)
    synthetic_grads.play(model, stage, shards, range(steps))
    boxes = [
        (name, held.whole_shape, held.box, held.copy, held.tensor.clone())
        for name, several in model.state().items()
        for held in several
    ]
    return boxes, model.scalars()


def whole_of(found):
    """The whole tensors out of the boxes that count, and how often each element was covered."""
    whole, covered = {}, {}
    for boxes, _ in found:
        for name, shape, box, copy, tensor in boxes:
            if copy == 0:
                whole.setdefault(name, torch.zeros(shape, dtype=tensor.dtype))[box.slices] = tensor
                covered.setdefault(name, torch.zeros(shape, dtype=torch.int))[box.slices] += 1
    return whole, covered


def resumed(flavour, layout, whole, scalars, steps):
    """Loads into a fresh model, goes on, and compares with an unbroken serial run."""
    model, stage, shards = synthetic_grads.build(flavour, layout, 64)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.fill_(torch.nan)  # nothing may be left of the initial weights
        for name, boxes in model.state().items():
            for held in boxes:
                held.tensor.copy_(whole[name][held.box.slices])
    model.loaded()
    model.load_scalars(scalars)
    assert all(
        torch.equal(tensor, whole[name][box.slices]) for name, _, box, _, tensor in boxes_of(model)
    )
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.nan_to_num_()  # padding
    synthetic_grads.play(model, stage, shards, steps)
    return synthetic_grads.worst(model, synthetic_grads.serial(range(steps.stop))[0])


def boxes_of(model):
    return [
        (name, h.whole_shape, h.box, h.copy, h.tensor)
        for name, several in model.state().items()
        for h in several
    ]


@pytest.mark.parametrize("flavour, layout", CASES)
def test_the_boxes_of_all_ranks_cover_every_tensor_exactly_once(flavour, layout):
    whole, covered = whole_of(on_ranks(ranks(layout), saved, flavour, layout))
    serial, _ = synthetic_grads.serial(range(1))
    assert whole.keys() == serial.keys()
    assert all(whole[name].shape == serial[name].shape for name in whole)
    assert all((count == 1).all() for count in covered.values())


@pytest.mark.parametrize(
    "source, target",
    [
        (("ddp", {"dp": 2}), ("zero1", {"tp": 2, "dp": 2})),
        (("zero1", {"tp": 2, "pp": 2, "dp": 2}), ("ddp", {"tp": 4})),
        (("zero1", {"dp": 4}), ("zero1", {"pp": 2, "dp": 2})),
    ],
)
def test_any_layout_goes_on_from_any_other(source, target):
    found = on_ranks(ranks(source[1]), saved, *source, 3)
    whole, _ = whole_of(found)
    for error in on_ranks(ranks(target[1]), resumed, *target, whole, found[0][1], range(3, 5)):
        assert error < 1e-12


def steps_of_an_old_checkpoint():
    model, _, _ = synthetic_grads.build("ddp", {})
    model.load_scalars({"adam_steps": 7})
    return model.scalars()


def test_the_count_of_steps_of_an_older_checkpoint_is_read():
    assert steps_of_an_old_checkpoint() == {"steps": 7}


def half_precision(flavour, layout):
    """bf16 weights: the masters against an fp32 run, the weights against the masters, and both ways of loading."""
    model, stage, shards = synthetic_grads.build(flavour, layout, 100, torch.bfloat16)
    synthetic_grads.play(model, stage, shards, range(5))
    whole = {
        name.replace("param", "optim.master"): value
        for name, value in synthetic_grads.serial(range(5))[0].items()
    }
    error = synthetic_grads.worst(model, whole)
    state = model.state()
    rounded = all(
        torch.equal(low.tensor, high.tensor.bfloat16())
        and low.dtype == torch.bfloat16
        and high.dtype == torch.float32
        and low.box == high.box
        for name, boxes in state.items()
        if name.startswith("param.")
        for low, high in zip(boxes, state[name.replace("param", "optim.master")], strict=True)
    )
    trained = [parameter.detach().clone() for parameter in stage.parameters()]
    for parameter in stage.parameters():
        parameter.data.zero_()
    model.loaded()
    from_masters = all(map(torch.equal, trained, stage.parameters()))
    for name, boxes in state.items():
        for held in boxes:
            held.tensor.fill_({"param": 2.0}.get(name.split(".")[0], 0.5))
    model.loaded(masters=False)
    filled = {
        held.tensor.unique().item()
        for name, boxes in model.state().items()
        for held in boxes
        if name.startswith(("param", "optim.master"))
    }
    return error, rounded, from_masters, filled == {2.0}


@pytest.mark.parametrize("flavour", ["ddp", "zero1"])
def test_half_precision_weights_follow_fp32_masters(flavour):
    for error, *checks in on_ranks(4, half_precision, flavour, {"tp": 2, "dp": 2}):
        assert error < 2e-3 and checks == [True, True, True]
