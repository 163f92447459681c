"""Diagnoses why a layout differs from the one-process run: says where they differ first, and which class of mistake
leaves such a pattern. These are guesses, and named as such: they say where to look first.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.verification.layouts import Case
from megascratch.verification.run_layout import Difference, RanksDisagree, RunRecord, difference
from megascratch.verification.tolerance import Tolerance


class Scene(NamedTuple):
    """Everything that a pattern may inspect."""

    found: Difference  # the first one that is too large
    reference: RunRecord
    measured: RunRecord
    case: Case
    tolerance: float

    @property
    def pair(self) -> tuple[Tensor, Tensor]:
        """The reference's and the layout's tensor (or number), in fp64."""
        return _value(self.found, self.reference).double(), _value(
            self.found, self.measured
        ).double()

    @property
    def differing(self) -> list[str]:
        """Names of all tensors of this kind and step that differ."""
        if self.found.kind not in ("gradients", "weights"):
            return []
        measured = _tensors(self.found, self.measured)
        names = []
        for name, tensor in _tensors(self.found, self.reference).items():
            if name not in measured or not difference(tensor, measured[name]) <= self.tolerance:
                names.append(_bare(name))
        return names

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers that a mistake is likely to leave as a factor."""
        parallel = self.case.config.parallel
        training = self.case.config.training
        dp = parallel.data_parallel_size
        return {
            "the tensor parallel size": parallel.tensor_model_parallel_size,
            "the context parallel size": parallel.context_parallel_size,
            "the data parallel size": dp,
            "the number of stages": parallel.pipeline_model_parallel_size,
            "the micro-batches": training.global_batch_size // (training.micro_batch_size * dp),
        }


def diagnose(
    found: Difference,
    reference: RunRecord,
    measured: RunRecord,
    case: Case,
    yardstick: Tolerance,
) -> str:
    """Says where the two runs differ first, and which patterns fit."""
    scene = Scene(found, reference, measured, case, yardstick.alike[found.kind])
    when = f"step {found.step}" if found.step else "the start"
    kind = {"gradients": "gradient of ", "weights": "weight "}.get(found.kind, "")
    where = _where(scene)
    head = (
        f"first at {when}: {kind}{found.tensor}{where} is off by {yardstick.describe(found.value)}"
    )
    guesses = []
    for pattern in PATTERNS:
        guess = pattern(scene)
        if guess is not None:
            guesses.append(guess)
    if not guesses:
        return head
    return f"{head}; looks like {', or '.join(guesses[:2])}"


def diagnose_disagreement(error: RanksDisagree, case: Case) -> str:
    """As `diagnose`, for ranks whose parts do not form one model that could be compared."""
    if error.what == "numbers":
        guess = "a sum over some axis left out of the loss, the norm or the gradients, or ranks that read other samples"
    elif error.what == "places":
        guess = "a shifted layer: two stages hold it, or none"
    elif error.tensor.startswith("param."):
        guess = "updated weights that not all ranks got"
        if case.config.parallel.use_distributed_optimizer:
            guess += " (gathering under ZeRO-1)"
    elif ".qkv." in error.tensor:
        guess = (
            "gradients of shared key/value heads not summed over the tensor ranks that share them"
        )
    elif "embedding.word" in error.tensor:
        guess = "the two copies of the tied embedding not summed over the first and the last stage"
    else:
        guess = f"a missing sum over the {_holders(case)} ranks of a weight that each of them holds"
    return f"the ranks do not hold one consistent model: {error}; looks like {guess}"


def _holders(case: Case) -> str:
    """The kinds of ranks that hold copies of one weight."""
    parallel = case.config.parallel
    sizes = {
        "data": parallel.data_parallel_size,
        "tensor": parallel.tensor_model_parallel_size,
        "context": parallel.context_parallel_size,
    }
    return " or the ".join(kind for kind, size in sizes.items() if size > 1)


def _where(scene: Scene) -> str:
    """The ranges of each dim in which the tensors differ; '' if they differ everywhere."""
    a, b = scene.pair
    if a.dim() == 0 or a.shape != b.shape:
        return ""
    parts = []
    for dim, (start, stop) in enumerate(_ranges(scene)):
        if (start, stop) != (0, a.shape[dim]):
            parts.append(f"dim {dim} {start}:{stop}")
    return f" [{', '.join(parts)}]" if parts else ""


def _ranges(scene: Scene) -> list[tuple[int, int]]:
    """For each dim, the first index that differs and one past the last."""
    wrong = _wrong(scene)
    ranges = []
    for dim in range(wrong.dim()):
        along = wrong.movedim(dim, 0).reshape(wrong.shape[dim], -1).any(1)  # [size of dim]
        index = along.nonzero().flatten()
        if len(index):
            ranges.append((int(index[0]), int(index[-1]) + 1))
        else:
            ranges.append((0, wrong.shape[dim]))
    return ranges


def _wrong(scene: Scene) -> Tensor:
    a, b = scene.pair
    return ~((a - b).abs() <= scene.tolerance * a.abs().max())


# ---- patterns --------------------------------------------------------------------------------------------------


def a_factor(scene: Scene) -> str | None:
    """Every element is off by the same factor."""
    a, b = scene.pair
    if a.shape != b.shape or not a.abs().max() > 0:
        return None
    ratio = float((a * b).sum() / (a * a).sum())
    if not difference(a * ratio, b) <= 100 * scene.tolerance:
        return None
    powers = {"": 1.0, "1 / ": -1.0, "the root of ": 0.5, "1 / the root of ": -0.5}
    names = []
    for name, size in scene.sizes.items():
        for words, power in powers.items():
            if size > 1 and abs(ratio / size**power - 1) < 1e-3:
                names.append(f"{words}{name} ({size})")
    if names:
        return f"a factor of {' or '.join(names)}"
    return f"one factor ({ratio:.6g}) on every element" if a.dim() else None


def a_shifted_layer(scene: Scene) -> str | None:
    """A layer has the tensor of another layer."""
    name = scene.found.tensor
    if scene.found.kind not in ("gradients", "weights") or not name.startswith("layers."):
        return None
    _, measured = scene.pair
    for key, tensor in _tensors(scene.found, scene.reference).items():
        other = _bare(key)
        if other == name or not other.startswith("layers.") or _in_layer(other) != _in_layer(name):
            continue
        is_constant = bool((tensor == tensor.flatten()[0]).all())
        if not is_constant and difference(tensor.double(), measured) <= scene.tolerance:
            return f"a shifted layer: this is {other} of the one-process run"
    return None


def _in_layer(name: str) -> str:
    """layers.3.mlp.up.weight -> mlp.up.weight"""
    _, _, rest = name.split(".", 2)
    return rest


def a_part_of_qkv(scene: Scene) -> str | None:
    """Only the rows of queries, keys or values differ."""
    if ".qkv." not in scene.found.tensor or scene.pair[0].shape != scene.pair[1].shape:
        return None
    model = scene.case.config.model
    q = model.num_attention_heads * model.kv_channels
    kv = model.num_query_groups * model.kv_channels
    wrong = _wrong(scene)
    rows = wrong.flatten(1).any(1) if wrong.dim() > 1 else wrong  # [q + 2 kv]
    parts = {"query": rows[:q].any(), "key": rows[q : q + kv].any(), "value": rows[q + kv :].any()}
    bad = [name for name, any_wrong in parts.items() if any_wrong]
    if len(bad) == len(parts):
        return None
    ranks_share_heads = (
        model.num_query_groups < scene.case.config.parallel.tensor_model_parallel_size
    )
    if ranks_share_heads and "query" not in bad:
        why = "gradients of shared key/value heads not summed"
    else:
        why = "a wrong cut of the fused rows"
    return f"{why} (only {' and '.join(bad)} rows)"


def only_some_rows(scene: Scene) -> str | None:
    """Only some rows of a vocabulary table differ."""
    if not scene.found.tensor.endswith(("word.weight", "head.weight")):
        return None
    start, stop = _ranges(scene)[0]
    rows = scene.pair[0].shape[0]
    tp = scene.case.config.parallel.tensor_model_parallel_size
    if (start, stop) == (0, rows) or tp == 1:
        return None
    return f"a part of the vocabulary on the wrong tensor rank, or padding that counts (rows {start}:{stop} of {rows})"


def only_replicated_weights(scene: Scene) -> str | None:
    """Only norm weights and biases differ, which every tensor rank holds."""
    tp = scene.case.config.parallel.tensor_model_parallel_size
    names = scene.differing
    if tp == 1 or not names:
        return None
    if not all("norm" in name or name.endswith((".bias", "position.weight")) for name in names):
        return None
    return "a missing sum over the tensor ranks (only norms, biases or positions, which every rank holds, differ)"


def only_the_tied_weight(scene: Scene) -> str | None:
    """Only the tied word table differs, on several stages."""
    is_tied = not scene.case.config.model.untie_embeddings_and_output_weights
    stages = scene.case.config.parallel.pipeline_model_parallel_size
    if not is_tied or stages == 1 or scene.differing != ["embedding.word.weight"]:
        return None
    return "the two copies of the tied embedding not summed over the first and the last stage"


def the_update(scene: Scene) -> str | None:
    """Loss and gradients of the first step are right, but the update differs."""
    found = scene.found
    if found.kind == "grad norm":
        return "a weight left out of the norm or counted more than once (every gradient is right)"
    if found.step > 1 or (found.kind == "weights" and found.step):
        guess = "the optimizer's step: clipping, moments"
        if scene.case.config.parallel.use_distributed_optimizer:
            guess += ", or weights not gathered under ZeRO-1"
        return guess
    return None


def the_forward(scene: Scene) -> str | None:
    """The first loss is wrong, although the initial weights are right."""
    if scene.found.kind != "loss" or scene.found.step != 1:
        return None
    return "the forward pass or the count of valid tokens (the initial weights are right)"


def the_initial_weights(scene: Scene) -> str | None:
    """The weights differ before the first step."""
    if scene.found.kind != "weights" or scene.found.step:
        return None
    return "initial weights that depend on the layout (law 2)"


PATTERNS: list[Callable[[Scene], str | None]] = [
    a_shifted_layer,
    a_factor,
    only_the_tied_weight,
    only_replicated_weights,
    a_part_of_qkv,
    only_some_rows,
    the_update,
    the_forward,
    the_initial_weights,
]


# ---- what was measured -----------------------------------------------------------------------------------------


def _value(found: Difference, trace: RunRecord) -> Tensor:
    if found.kind == "loss":
        return torch.tensor(trace.losses[found.step - 1])
    if found.kind == "grad norm":
        return torch.tensor(trace.norms[found.step - 1])
    for name, tensor in _tensors(found, trace).items():
        if _bare(name) == found.tensor:
            return tensor
    return torch.zeros(())


def _tensors(found: Difference, trace: RunRecord) -> dict[str, Tensor]:
    if found.kind == "gradients":
        return trace.grads[found.step - 1]
    return trace.params if found.step else trace.initial


def _bare(name: str) -> str:
    return name.removeprefix("param.").removeprefix("grad.")
