"""Whole training steps beside megatron-core, for the same flags, weights and files.

Megatron-LM's side is put together from megatron-core 0.16.1 (torch 2.13, CPU, fp32): GPTDataset, GPTModel of local
layers, DDP, its Adam, clipping and OptimizerParamScheduler. Ours is a command line of Megatron-LM.
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
from torch import Tensor

from megascratch.config.batch_size import num_microbatches
from megascratch.config.errors import Problems
from megascratch.config.load import read_config
from megascratch.training.setup import TrainingRun, build_run
from megascratch.training.start.settings import legal_settings
from megascratch.training.state import next_rates
from tests.support.corpora import golden
from tests.support.megatron_core import core, gpt_model  # noqa: F401 - a fixture
from tests.support.megatron_model import model_of_formulas, tensors_there

STEPS = 12
BATCH = 8
MICRO_BATCH = 2
SEQUENCE = 16
IDS = 1000
EOD = 7
SEED = 4321
COMMON = (
    "--num-layers 2 --hidden-size 32 --num-attention-heads 4 --seq-length 16 --max-position-embeddings 16 "
    "--make-vocab-size-divisible-by 1 --hidden-dropout 0 --attention-dropout 0 --micro-batch-size 2 "
    "--global-batch-size 8 --train-iters 12 --eval-iters 1 --seed 4321 --lr 3e-3 --weight-decay 0.1 --clip-grad 0.5 "
    "--tokenizer-type NullTokenizer --vocab-size 1000 --null-tokenizer-eod-id 7 --split 90,5,5 "
    "--log-interval 1 --flags-of megatron"
)
LLAMA = (
    "--normalization RMSNorm --disable-bias-linear --position-embedding-type rope --swiglu "
    "--untie-embeddings-and-output-weights --group-query-attention --num-query-groups 2"
)
OF_LLAMA = {
    "add_bias_linear": False,
    "position_embedding_type": "rope",
    "activation": "swiglu",
    "ffn_hidden_size": 64,
    "normalization": "RMSNorm",
    "share_embeddings_and_output_weights": False,
    "num_query_groups": 2,
}
OF_GPT = {"bias_activation_fusion": True}


class Run(NamedTuple):
    """A command line, and what Megatron-LM makes of it."""

    flags: str
    model: dict[str, Any]
    """Arguments of `gpt_model`."""
    schedule: dict[str, Any]
    """Arguments of its OptimizerParamScheduler, in samples."""
    weights: list[float] | None = None
    """Of a blend of two corpora."""
    rates: Mapping[str, Any] = MappingProxyType({})
    """Arguments of its OptimizerConfig."""
    masks_ends: bool = False
    per_token: bool = False


RUNS = {
    "GPT, cosine": Run(
        "--lr-decay-style cosine --min-lr 1e-4 --lr-warmup-iters 3",
        OF_GPT,
        {"lr_decay_style": "cosine", "min_lr": 1e-4, "lr_warmup_steps": 3 * BATCH},
    ),
    "Llama, a blend, linear": Run(
        f"{LLAMA} --lr-warmup-fraction 0.25",
        OF_LLAMA,
        {"lr_decay_style": "linear", "lr_warmup_steps": 0.25 * STEPS * BATCH},
        weights=[0.3, 0.7],
    ),
    "GPT, WSD": Run(
        "--lr-decay-style WSD --lr-wsd-decay-style exponential --lr-wsd-decay-iters 5 --lr-warmup-iters 2",
        OF_GPT,
        {
            "lr_decay_style": "WSD",
            "lr_warmup_steps": 2 * BATCH,
            "wsd_decay_steps": 5 * BATCH,
            "lr_wsd_decay_style": "exponential",
        },
    ),
    "Llama, inverse square root": Run(
        f"{LLAMA} --lr-decay-style inverse-square-root --lr-warmup-iters 3",
        OF_LLAMA,
        {"lr_decay_style": "inverse-square-root", "lr_warmup_steps": 3 * BATCH},
    ),
    "GPT, a decoupled rate and a growing weight decay": Run(
        "--decoupled-lr 1e-2 --decoupled-min-lr 1e-3 --start-weight-decay 0.0 --end-weight-decay 0.5 "
        "--weight-decay-incr-style cosine",
        OF_GPT,
        {"start_wd": 0.0, "end_wd": 0.5, "wd_incr_style": "cosine"},
        rates={"decoupled_lr": 1e-2, "decoupled_min_lr": 1e-3},
    ),
    "GPT, the mean of micro-batch means": Run("--eod-mask-loss", OF_GPT, {}, masks_ends=True),
    "GPT, the mean over tokens": Run(
        "--eod-mask-loss --calculate-per-token-loss", OF_GPT, {}, masks_ends=True, per_token=True
    ),
}


class Step(NamedTuple):
    """The numbers of a step, and the weights after it."""

    loss: float
    norm: float
    lr: float


def our_run(run: Run, prefixes: list[str], folder: Any) -> TrainingRun:
    """A run with the weights of the formulas, before its first step."""
    words = [*COMMON.split(), *run.flags.split(), "--output-dir", str(folder / "ours")]
    loaded = read_config([*words, "--data-path", *_blend(run, prefixes)])
    assert loaded.problems == []
    built = build_run(legal_settings(loaded, 1), Problems())
    weights = dict(model_of_formulas(built.config).named_parameters())
    (chunk,) = built.trainer.chunks
    with torch.no_grad():
        for name, parameter in chunk.named_parameters():
            parameter.copy_(weights[name])
    built.trainer.data_parallel.loaded(masters=False)
    return built


def _blend(run: Run, prefixes: list[str]) -> list[str]:
    if run.weights is None:
        return prefixes[:1]
    words = []
    for weight, prefix in zip(run.weights, prefixes, strict=True):
        words += [str(weight), prefix]
    return words


def our_steps(built: TrainingRun) -> Iterator[Step]:
    """As the loop takes them."""
    state = built.state
    config = built.config
    for _ in range(STEPS):
        microbatches = num_microbatches(config.training, 1, state.consumed_samples)
        batches = built.read(built.splits.train, state.consumed_samples, microbatches)
        lr, others = next_rates(config.optim, config.training, state)
        result = built.trainer.train_step(batches, lr, state.step + 1, others=others)
        state.count(BATCH, result.overflowed)
        yield Step(result.global_loss, result.grad_norm, lr)


# ---- megatron-core ------------------------------------------------------------------------------------------------


def their_samples(run: Run, prefixes: list[str]) -> Any:
    """Megatron-LM's training set."""
    from megatron.core.datasets.blended_megatron_dataset_builder import (
        BlendedMegatronDatasetBuilder,
    )
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    class Tokenizer:
        vocab_size = IDS
        eod = EOD
        pad = -1
        unique_identifiers: ClassVar[dict] = {}

    chosen = prefixes if run.weights else prefixes[:1]
    config = GPTDatasetConfig(
        random_seed=SEED,
        sequence_length=SEQUENCE,
        tokenizer=Tokenizer(),
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=run.masks_ends,
        create_attention_mask=True,
        blend=(chosen, run.weights),
        split="90,5,5",
    )
    sizes = [STEPS * BATCH, BATCH, BATCH]
    train, _, _ = BlendedMegatronDatasetBuilder(GPTDataset, sizes, lambda: True, config).build()
    return train


class Theirs:
    """Megatron-LM's model, optimizer and schedule."""

    def __init__(self, run: Run, weights: dict[str, Tensor]):
        from megatron.core.distributed import (
            DistributedDataParallel,
            DistributedDataParallelConfig,
        )
        from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
        from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

        self.run = run
        model = gpt_model(SEQUENCE, {"vocab_size": IDS, **run.model})
        own = dict(model.named_parameters())
        assert own.keys() == weights.keys()
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(weights[name])
        self.model = DistributedDataParallel(model.config, DistributedDataParallelConfig(), model)
        config = OptimizerConfig(
            optimizer="adam",
            lr=3e-3,
            min_lr=run.schedule.get("min_lr", 0.0),
            weight_decay=0.1,
            clip_grad=0.5,
            adam_beta1=0.9,
            adam_beta2=0.999,
            adam_eps=1e-8,
            **run.rates,
        )
        self.optimizer = get_megatron_optimizer(config, [self.model])
        schedule = {
            "init_lr": 0.0,
            "max_lr": 3e-3,
            "min_lr": 0.0,
            "lr_decay_style": "linear",
            "lr_warmup_steps": 0,
            "lr_decay_steps": STEPS * BATCH,
            "start_wd": 0.1,
            "end_wd": 0.1,
            "wd_incr_steps": STEPS * BATCH,
            "wd_incr_style": "constant",
        }
        self.scheduler = OptimizerParamScheduler(self.optimizer, **{**schedule, **run.schedule})

    def steps(self, samples: Any) -> Iterator[Step]:
        for step in range(STEPS):
            self.model.zero_grad_buffer()
            self.optimizer.zero_grad()
            firsts = range(step * BATCH, (step + 1) * BATCH, MICRO_BATCH)
            sums = [self._losses(samples, first) for first in firsts]
            tokens = sum(mask.sum().item() for _, mask in sums)
            for losses, mask in sums:
                share = tokens if self.run.per_token else mask.sum() * len(sums)
                ((losses * mask).sum() / share).backward()
            self.model.finish_grad_sync()
            lr = max(group["lr"] for group in self.optimizer.param_groups if not _apart(group))
            _, norm, _ = self.optimizer.step()
            self.scheduler.step(BATCH)
            loss = sum((losses * mask).sum().item() for losses, mask in sums) / tokens
            yield Step(loss, float(norm), lr)

    def _losses(self, samples: Any, first: int) -> tuple[Tensor, Tensor]:
        batch = [samples[number] for number in range(first, first + MICRO_BATCH)]
        rows = {}
        for name in ("tokens", "labels", "loss_mask", "position_ids", "attention_mask"):
            rows[name] = torch.stack([torch.as_tensor(sample[name]) for sample in batch])
        losses = self.model(
            rows["tokens"], rows["position_ids"], rows["attention_mask"], labels=rows["labels"]
        )
        return losses, rows["loss_mask"]


def _apart(group: dict) -> bool:
    """Whether a group has the decoupled rate."""
    return group.get("max_lr") == 1e-2


@pytest.mark.deep
@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("name", RUNS)
def test_twelve_steps_are_those_of_megatron_core(name, tmp_path):
    run = RUNS[name]
    prefixes = [golden(tmp_path / f"corpus{each}", 120, each) for each in (1, 2)]
    built = our_run(run, prefixes, tmp_path)
    own = dict(built.trainer.chunks[0].named_parameters())
    copies = {key: weight.detach().clone() for key, weight in own.items()}
    theirs = Theirs(run, tensors_there(copies, built.config.model))
    pairs = zip(our_steps(built), theirs.steps(their_samples(run, prefixes)), strict=True)
    for number, (mine, other) in enumerate(pairs, 1):
        assert mine.loss == pytest.approx(other.loss, rel=1e-6), number
        assert mine.norm == pytest.approx(other.norm, rel=1e-5), number
        assert mine.lr == pytest.approx(other.lr, rel=1e-15, abs=1e-18), number
    built.saver.close()
    built.mesh.close()
