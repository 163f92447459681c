"""The traffic of one rank in a step, as the papers count it: from the numbers of the model and the layout alone.

Tensor parallelism (Shoeybi et al. 2019, section 3), sequence parallelism (Korthikanti et al. 2022, section 4.2),
pipelines (Narayanan et al. 2021, section 2.2), data parallelism and ZeRO-1 (Rajbhandari et al. 2020, section 7).
Buckets are as large as a chunk, so that no bytes are padding but for the end of each.
"""

import random
from collections import Counter
from dataclasses import dataclass

import torch

from tests.support.layout_runs import config_of
from tests.support.traffic import imagined_traffic

WIDE = {"bf16": 2, "fp16": 2, "fp32": 4}
GRADIENT = 4  # bytes of an element; losses are as wide
FOLDED = ("zb_v", "dualpipe_v")


@dataclass(frozen=True)
class Case:
    """A model and its layout."""

    tp: int
    pp: int
    dp: int
    microbatches: int
    layers: int
    schedule: str = "1f1b"
    chunks: int = 1
    sp: bool = False
    zero1: bool = False
    tied: bool = False
    llama: bool = False
    precision: str = "bf16"
    recompute: str = "none"
    rank: int = 0
    h: int = 2048
    heads: int = 32
    groups: int = 8
    f: int = 8192
    s: int = 64
    b: int = 2
    vocab: int = 5000

    @property
    def settings(self) -> dict:
        found = {
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "data_parallel_size": self.dp,
            "pipeline_schedule": self.schedule,
            "num_virtual_stages_per_pipeline_rank": self.chunks,
            "sequence_parallel": self.sp,
            "use_distributed_optimizer": self.zero1,
            "untie_embeddings_and_output_weights": not self.tied,
            "num_layers": self.layers,
            "hidden_size": self.h,
            "num_attention_heads": self.heads,
            "num_query_groups": self.groups,
            "ffn_hidden_size": self.f,
            "seq_length": self.s,
            "micro_batch_size": self.b,
            "vocab_size": self.vocab,
            "make_vocab_size_divisible_by": 128,
            "global_batch_size": self.b * self.dp * self.microbatches,
            "ddp_bucket_size": 10**12,
            "fp64": False,
            "bf16": self.precision == "bf16",
            "fp16": self.precision == "fp16",
            "recompute_granularity": None if self.recompute == "none" else self.recompute,
        }
        if self.llama:
            found |= {
                "position_embedding_type": "rope",
                "normalization": "RMSNorm",
                "swiglu": True,
                "add_bias_linear": False,
            }
        return found

    # ---- where the rank is ---------------------------------------------------------------------------------------

    @property
    def stage(self) -> int:
        return self.rank // (self.tp * self.dp)

    @property
    def data_rank(self) -> int:
        return self.rank // self.tp % self.dp

    @property
    def virtual(self) -> list[int]:
        """The virtual stages of the rank."""
        if self.schedule in FOLDED:
            return [self.stage, 2 * self.pp - 1 - self.stage]
        return [self.stage + self.pp * chunk for chunk in range(self.chunks)]

    @property
    def last(self) -> int:
        return self.pp * self.chunks - 1

    # ---- sizes ---------------------------------------------------------------------------------------------------

    @property
    def table(self) -> int:
        """Elements of a rank's part of the word table, or of the output matrix."""
        unit = 128 * self.tp
        return -(-self.vocab // unit) * unit * self.h // self.tp

    @property
    def norm(self) -> int:
        return self.h if self.llama else 2 * self.h

    @property
    def hidden(self) -> int:
        """Bytes of the hidden states of a micro-batch, not split."""
        return self.s * self.b * self.h * WIDE[self.precision]

    @property
    def partial(self) -> int:
        """Elements of the weights of a chunk's layer that see a slice of the sequence: norms, row-parallel biases."""
        return 2 * self.norm + (0 if self.llama else 2 * self.h)

    def elements(self, virtual: int) -> int:
        """Elements of the rank's part of a virtual stage, without weights that have a bucket of their own."""
        kv = 2 * self.groups * (self.h // self.heads)
        inner = self.f * (2 if self.llama else 1)
        matrices = self.h * (self.h + kv) + self.h * self.h + self.h * inner + self.f * self.h
        columns = 0 if self.llama else self.h + kv + inner
        total = self.layers // (self.last + 1)
        total *= (matrices + columns) // self.tp + self.partial
        if virtual == 0:
            total += 0 if self.llama else self.s * self.h  # positions
            total += 0 if self.tied else self.table
        if virtual == self.last:
            total += self.norm + (0 if self.tied else self.table)
        return total

    def tied_copies(self) -> int:
        """The tied tables of the rank that have a bucket of their own."""
        if not self.tied:
            return 0
        copies = (0 in self.virtual) + (self.last in self.virtual)
        return min(copies, 1) if self.last == 0 else copies

    def buckets(self) -> int:
        """Elements of all buckets of the rank; the end of each is padded to 64 elements for each data rank."""
        unit = 64 * self.dp
        sizes = [self.elements(virtual) for virtual in self.virtual]
        sizes += [self.table] * self.tied_copies()
        return sum(-(-size // unit) * unit for size in sizes)


def traffic(case: Case) -> Counter:
    """(operation, axis) -> bytes; what is over all ranks, a few numbers, is left out."""
    found: Counter = Counter()
    if case.tp > 1:
        found += _tensor_parallel(case)
    found += _pipeline(case)
    if case.dp > 1:
        if case.zero1:
            found["reduce_scatter", "data"] += case.buckets() * GRADIENT
            found["all_gather", "data"] += case.buckets() * WIDE[case.precision]
        else:
            found["all_reduce", "data"] += case.buckets() * GRADIENT
    if case.tied and case.pp > 1 and case.schedule not in FOLDED and case.tied_copies():
        shares = case.dp if case.zero1 else 1
        found["all_reduce", "embedding"] += case.table * GRADIENT // shares
    return found


def _tensor_parallel(case: Case) -> Counter:
    found: Counter = Counter()
    m = case.microbatches
    layers = m * len(case.virtual) * (case.layers // (case.last + 1))
    full = case.recompute == "full"
    gather, scatter, reduce = ("all_gather", "tp"), ("reduce_scatter", "tp"), ("all_reduce", "tp")
    if case.sp:
        # forward g, ḡ twice; backward their conjugates, and the inputs of two products gathered again
        found[gather] += (6 + 2 * full) * layers * case.hidden
        # a layer that runs again stops at its last product: nothing needs its sum
        found[scatter] += (4 + 1 * full) * layers * case.hidden
    else:
        found[reduce] += (4 + 1 * full) * layers * case.hidden
    if 0 in case.virtual:  # the embedding: forward, and with sequence parallelism backward
        found[scatter if case.sp else reduce] += m * case.hidden
        found[gather] += m * case.hidden * case.sp
    if (
        case.last in case.virtual
    ):  # the output matrix, and the loss: maximum, sum and target of each token
        found[scatter if case.sp else reduce] += m * case.hidden
        found[gather] += 2 * m * case.hidden * case.sp
        found[reduce] += m * 3 * case.s * case.b * GRADIENT
    if case.sp:
        found[reduce] += _partial_gradients(case) * GRADIENT
    return found


def _partial_gradients(case: Case) -> int:
    """Elements of this rank's gradients that are summed over tp. ZeRO-1 sums those in the rank's range; there the model
    is Llama, whose only ones are norms, at the end of the bucket."""
    total = 0
    for virtual in case.virtual:
        norms = case.layers // (case.last + 1) * case.partial
        norms += case.norm if virtual == case.last else 0
        if not case.zero1:
            learned = case.s * case.h if virtual == 0 and not case.llama else 0
            total += norms + learned
            continue
        size = case.elements(virtual)
        unit = 64 * case.dp
        share = -(-size // unit) * unit // case.dp
        first = case.data_rank * share
        total += max(0, min(size, first + share) - max(size - norms, first))
    return total


def _pipeline(case: Case) -> Counter:
    """Every virtual stage but the last sends its output to the next, unless that is on the same rank, and gets back the
    gradient."""
    found: Counter = Counter()
    message = case.hidden // (case.tp if case.sp else 1)
    for virtual in case.virtual:
        forwards = virtual < case.last and virtual + 1 not in case.virtual
        backwards = virtual > 0 and virtual - 1 not in case.virtual
        for operation in ("send", "receive"):
            found[operation, "pp"] += (forwards + backwards) * case.microbatches * message
    return +found


def counted(case: Case) -> Counter:
    """The same, as the program of the rank asks for it."""
    found: Counter = Counter()
    config = config_of(**case.settings)
    for what in imagined_traffic(config, case.rank, gloo=False):
        if what.during and what.dtype != torch.float64:  # those are numbers of the whole step
            found[what.operation, what.axis] += what.nbytes
    return found


def traffic_is_that_of_the_papers(case: Case) -> None:
    assert counted(case) == traffic(case)


def random_cases(seed: int, number: int) -> list[Case]:
    """Random models and layouts, and a random rank of each."""
    stream = random.Random(seed)
    cases = []
    for _ in range(number):
        tp, pp, dp = (stream.choice(sizes) for sizes in ((1, 2, 4, 8), (1, 2, 4), (1, 2, 4, 16)))
        schedules = ["1f1b", "gpipe", "zb_h1", "interleaved", "zb_v", "dualpipe_v"]
        schedule = stream.choice(schedules) if pp > 1 else "1f1b"
        chunks = 2 if schedule in ("interleaved", *FOLDED) else 1
        sp = stream.choice([True, False])
        zero1 = stream.choice([True, False])
        cases.append(
            Case(
                tp=tp,
                pp=pp,
                dp=dp,
                schedule=schedule,
                chunks=chunks,
                layers=pp * chunks,
                sp=sp,
                zero1=zero1,
                tied=stream.choice([True, False]),
                llama=stream.choice([True, False]) or (sp and zero1),
                precision=stream.choice(list(WIDE)),
                recompute=stream.choice(["none", "selective", "full"]),
                microbatches=pp,
                rank=stream.randrange(tp * pp * dp),
            )
        )
    return cases
