"""Finds settings that were given but have no effect, so that none is ignored silently.

Most of it is in the declarations: a setting that `needs` another one. What is risky, or has no effect for a reason of
its own, has its sentence here.
"""

from collections.abc import Mapping
from typing import Any

from megascratch.config.batch_size import steps_and_samples
from megascratch.config.declare import Setting
from megascratch.config.fields import SETTINGS, flat
from megascratch.config.resolve import ResolvedConfig


def notices(config: ResolvedConfig) -> list[str]:
    """One sentence per setting that has no effect given the others, or is risky; the config is legal."""
    model = config.model
    data = config.data
    rows_of_padding = model.trained_vocab_rows - model.vocab_size
    special = [
        (
            config.parallel.optimizer_cpu_offload and config.training.device == "cpu",
            "optimizer-cpu-offload saves no memory with device cpu and adds copies",
        ),
        (
            model.position_embedding_type != "learned_absolute"
            and model.max_position_embeddings != data.seq_length,
            "max-position-embeddings has no effect without position-embedding-type learned_absolute",
        ),
        (
            model.normalization == "RMSNorm" and model.norm_bias != model.add_bias_linear,
            "norm-bias has no effect with normalization RMSNorm: it has no biases",
        ),
        (
            model.add_qkv_bias and model.add_bias_linear,
            "add-qkv-bias has no effect: add-bias-linear already gives every linear layer a bias",
        ),
        (
            data.mock_data and data.split is not None,
            "split has no effect with mock-data",
        ),
        (
            config.training.eval_iters == 0 and config.training.eval_interval > 0,
            "eval-interval has no effect with eval-iters 0: there is no validation",
        ),
        (
            model.padded_vocab_in_softmax,
            f"padded-vocab-in-softmax: {rows_of_padding} rows of padding take part in the softmax and are trained, so "
            f"the model depends on padded-vocab-size ({model.trained_vocab_rows})",
        ),
        (
            bool(data.data_stages)
            and int((data.data_stages or ["0"])[-1].split()[0])
            >= steps_and_samples(config.training)[1],
            "the last of data-stages begins after the last sample of the run: it is never read",
        ),
        (
            not config.training.calculate_per_token_loss,
            "the loss is the mean of micro-batch means, as in Megatron-LM (calculate-per-token-loss is off): where "
            "tokens are masked, the model depends on micro-batch-size",
        ),
        (
            config.training.keep_last_n_checkpoints == 1,
            "keep-last-n-checkpoints 1 leaves no other checkpoint if the newest one is damaged: 2 is safer",
        ),
    ]
    sentences = [sentence for applies, sentence in special if applies]
    return without_effect(flat(config)) + sentences


def without_effect(
    values: Mapping[str, Any], settings: Mapping[str, Setting] = SETTINGS
) -> list[str]:
    """One sentence per need that is not met, with the settings that differ from their default in spite of it."""
    ignored: dict[str, list[str]] = {}
    for name, setting in settings.items():
        needs = setting.needs
        if needs is None or values[name] in (setting.default, []):
            continue
        if not needs.met_by(values[needs.name]):
            ignored.setdefault(needs.otherwise, []).append(name.replace("_", "-"))
    sentences = []
    for otherwise, names in ignored.items():
        verb = "has" if len(names) == 1 else "have"
        sentences.append(f"{' and '.join(names)} {verb} no effect {otherwise}")
    return sentences
