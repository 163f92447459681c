"""For the same flags, weights and batch the model is Megatron-LM's: loss and gradients, in fp32."""

import pytest
import torch
from torch import Tensor

from megascratch.config.resolve import ResolvedConfig
from tests.support.megatron_core import core, gpt_model  # noqa: F401 - a fixture
from tests.support.megatron_model import (
    MODELS,
    SameModel,
    batch_of_formulas,
    config_of_flags,
    loss_and_gradients,
    model_of_formulas,
    norm_of_gradients,
    tensors_there,
    the_model_is_that_of_megatron_core,
)


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradient_norm_are_those_that_megatron_core_gave(name):
    """The values are in the table, with the versions that gave them."""
    the_model_is_that_of_megatron_core(name)


def test_no_two_of_the_models_that_differ_have_the_same_loss_and_norm():
    """The values can tell them apart; only one flag is there to be ignored."""
    values = {(round(same.loss, 5), round(same.norm, 5)) for same in MODELS.values()}
    assert (
        len(values) == len(MODELS) - 2
    )  # the ignored flag, and the factor of norms that is the same


def loss_and_gradients_there(
    config: ResolvedConfig, same: SameModel
) -> tuple[float, dict[str, Tensor]]:
    """The mean loss there with the weights of the formulas, and the gradients by their names there. A norm there has
    the factor itself: layers of a CPU cannot store it minus one."""
    theirs = gpt_model(config.data.seq_length, same.core)
    weights = tensors_there(dict(model_of_formulas(config).named_parameters()), config.model)
    own = dict(theirs.named_parameters())
    assert own.keys() == weights.keys()
    with torch.no_grad():
        for name, parameter in own.items():
            is_norm = "layernorm" in name and name.endswith("weight")
            parameter.copy_(weights[name] + float(is_norm and config.model.apply_layernorm_1p))
    batch = batch_of_formulas(config)
    length = config.data.seq_length
    masked = torch.ones(1, 1, length, length, dtype=torch.bool).triu(1)
    loss = theirs(batch.ids, batch.positions, masked, labels=batch.labels).mean()
    loss.backward()
    return loss.item(), {name: parameter.grad for name, parameter in own.items()}


@pytest.mark.deep
@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("name", MODELS)
def test_megatron_core_gives_the_same_loss_and_gradients(name):
    """The values in the table are what it gives."""
    same = MODELS[name]
    config = config_of_flags(same.flags)
    theirs, their_grads = loss_and_gradients_there(config, same)
    loss, grads = loss_and_gradients(config)
    assert loss == pytest.approx(theirs, rel=1e-6)
    for name, grad in tensors_there(grads, config.model).items():
        far = (grad - their_grads[name]).norm() / their_grads[name].norm()
        assert far <= 1e-5, name
    assert (same.loss, same.norm) == pytest.approx(
        (theirs, norm_of_gradients(their_grads)), rel=1e-6
    )
