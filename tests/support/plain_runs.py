"""Training in one process by plain autograd and torch's optimizer: no buckets, no sinks, no trainer."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from megascratch.config.resolve import ResolvedConfig
from megascratch.model.build import build_chunks
from megascratch.parallel.mesh import Mesh
from megascratch.verification.run_layout import RunRecord, one_process
from tests.support.layout_runs import synthetic_batch

PADDED = ("embedding.word.weight", "head.weight")


def plain_run(
    config: ResolvedConfig,
    steps: int,
    build: Callable = build_chunks,
    after_step: Callable[[nn.Module], None] = lambda chunk: None,
) -> tuple[RunRecord, nn.Module]:
    """What these steps are in one process, and the model after them. In fp64.

    Args:
        build: instead of `build_chunks`.
        after_step: called with the model after each step.
    """
    config = one_process(config)
    optim, batch_size = config.optim, config.training.global_batch_size
    seed = config.training.seed
    (chunk,) = build(config.model, config.parallel, Mesh.alone(), torch.float64, seed)
    weights = dict(chunk.named_parameters())
    trained = {name: w for name, w in weights.items() if w.requires_grad}
    groups = []
    for matrices, decay in ((True, optim.weight_decay), (False, 0.0)):
        some = [w for w in trained.values() if (w.dim() > 1) is matrices]
        groups.append({"params": some, "weight_decay": decay})
    adamw = torch.optim.AdamW(
        groups, lr=optim.lr, betas=(optim.adam_beta1, optim.adam_beta2), eps=optim.adam_eps
    )
    initial = true_tensors("param", weights, config)
    losses, norms, grads = [], [], []
    for step in range(steps):
        batch = synthetic_batch(config, range(step * batch_size, (step + 1) * batch_size))
        loss = chunk(None, batch) / batch.loss_mask.sum()
        adamw.zero_grad()
        loss.backward()
        losses.append(loss.item())
        grads.append(true_tensors("grad", {name: w.grad for name, w in trained.items()}, config))
        norms.append(nn.utils.clip_grad_norm_(trained.values(), optim.clip_grad).item())
        adamw.step()
        after_step(chunk)
    params = true_tensors("param", weights, config)
    return RunRecord(losses, norms, grads, params, initial), chunk


def true_tensors(
    kind: str, tensors: dict[str, Tensor], config: ResolvedConfig
) -> dict[str, Tensor]:
    """Copies by the names in a checkpoint, without the rows of padding."""
    found = {}
    for name, tensor in tensors.items():
        rows = config.model.vocab_size if name in PADDED else len(tensor)
        found[f"{kind}.{name}"] = tensor.detach()[:rows].clone()
    return found
