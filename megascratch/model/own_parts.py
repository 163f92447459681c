"""Tries out the parts that a user registered before a run starts: layers on torch's meta device, which needs no memory,
the optimizer on a few numbers, the learning-rate curve over its whole length.

What only shows on several ranks is for `megascratch verify`.
"""

from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from megascratch.config.errors import Problems, UserError
from megascratch.config.imports import users_line
from megascratch.config.layers import activation_of, layers_of
from megascratch.config.registry import is_registered, words
from megascratch.config.resolve import ResolvedModel
from megascratch.config.settings import OptimConfig
from megascratch.data.samples.batch import collate
from megascratch.model.chunk import ModelChunk, context_of
from megascratch.optim import optimizer_kind
from megascratch.optim.lr_schedule import require_curve
from megascratch.optim.optimizer import Stretch
from megascratch.parallel.axis import Axis

MATRIX = (2, 4)  # of the optimizer's trial


def require_own_parts(model: ResolvedModel, optim: OptimConfig, seq_length: int) -> None:
    """Raises: UserError, with a line for each part that does not work. Parts of the package are not tried."""
    problems = Problems()
    problems.attempt(partial(_try_layers, model, seq_length))
    if is_registered("optimizer", optim.optimizer):
        problems.attempt(partial(_try_optimizer, optim))
    problems.attempt(partial(require_curve, optim))
    problems.require_none()


def _try_layers(model: ResolvedModel, seq_length: int) -> None:
    """The forward of the first layers, of every kind, if one of them was registered."""
    specs = layers_of(model)
    names = [("norm", model.normalization), ("activation", activation_of(model))]
    for spec in specs:
        names += [("mixer", spec.mixer.kind), ("feed_forward", spec.feed_forward.kind)]
    own = [name for kind, name in dict.fromkeys(names) if is_registered(kind, name)]  # type: ignore[arg-type]
    if not own:
        return
    kinds = dict.fromkeys(specs)
    layers = max(specs.index(spec) for spec in kinds) + 1
    sample = np.ones(seq_length + 1, dtype=np.int64)
    batch = collate([sample], range(1), seq_length, None).to("meta")
    try:
        with torch.device("meta"):
            chunk = ModelChunk(model, range(layers), True, False, Axis.alone("tp"))
            chunk.eval()
            for block in chunk.blocks():
                for branch in block.branches:
                    for part in (branch.pre, branch.mix, branch.post):
                        if part is not None:
                            part.register_forward_hook(_require_shape)
            chunk.hidden(None, batch.ids, context_of(batch))
    except UserError:
        raise
    except NotImplementedError:
        return  # it reads numbers, which the meta device does not have
    except Exception as error:
        if "meta" in str(error):
            return
        raise UserError(f"the layers with {', '.join(own)} fail: {users_line(error)}") from error


def _require_shape(part: nn.Module, inputs: tuple, output: object) -> None:
    """A hook of a part of a block."""
    x = inputs[0]
    if not isinstance(output, Tensor):
        raise UserError(f"{type(part).__name__} must return a tensor, not {type(output).__name__}")
    if output.shape != x.shape:
        raise UserError(
            f"{type(part).__name__} must return the shape of its input [s, b, h], {list(x.shape)}, not "
            f"{list(output.shape)}"
        )


def _try_optimizer(optim: OptimConfig) -> None:
    """One step on a matrix of ones with gradients of one."""
    part = f"the {words('optimizer')} {optim.optimizer}"
    kind = optimizer_kind(optim)
    changes = optim.weight_decay_incr_style != "constant"
    if changes and not kind.changes_weight_decay:
        raise UserError(
            f"{part} has no set_weight_decay(weight_decay), so its weight decay cannot change: add it, or use "
            "weight-decay-incr-style constant"
        )
    weight = torch.ones(MATRIX if kind.needs_whole_matrices else (8,))
    state = {name: torch.zeros_like(weight) for name in kind.state_names}
    stretch = Stretch(weight, torch.ones_like(weight), state, decays=True)
    try:
        with torch.no_grad():
            kind.make([], optim).step(0.1)  # a rank may have nothing to update
            optimizer = kind.make([stretch], optim)
            optimizer.steps = 0
            if changes:
                optimizer.set_weight_decay(0.1)
            optimizer.step(0.1)
    except Exception as error:
        raise UserError(f"{part} fails: {users_line(error)}") from error
    if optimizer.steps != 1:
        raise UserError(f"{part} has steps {optimizer.steps} after one step: it must count them")
    if not weight.isfinite().all():
        raise UserError(f"{part} makes weights that are not finite in its first step")
    if (weight == 1).all():
        raise UserError(f"{part} leaves the weights as they are: update stretch.weight in place")
