"""The allowed range of each numeric setting on its own; a setting that is not listed may have any value."""

import math
import re
from typing import Any, NamedTuple


class Interval(NamedTuple):
    """An interval in mathematical notation: a round bracket excludes its end."""

    text: str
    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        if value == self.low:
            return self.text[0] == "["
        if value == self.high:
            return self.text[-1] == "]"
        return self.low < value < self.high

    def words(self) -> str:
        """'at least 0', 'above 0', 'in [0, 1)' ..., for an error message."""
        if not math.isinf(self.high):
            return f"in {self.text}"
        number = f"{self.low:g}"
        return f"above {number}" if self.text[0] == "(" else f"at least {number}"


def _interval(text: str) -> Interval:
    low, high = re.findall(r"[\w.]+", text)
    return Interval(text, float(low), float(high))


NAMES_BY_INTERVAL = {
    "[1, inf)": """
        num_layers hidden_size num_attention_heads num_query_groups kv_channels ffn_hidden_size
        max_position_embeddings vocab_size make_vocab_size_divisible_by tensor_model_parallel_size
        pipeline_model_parallel_size data_parallel_size num_virtual_stages_per_pipeline_rank
        microbatch_group_size_per_virtual_pipeline_stage ddp_bucket_size seq_length micro_batch_size
        global_batch_size train_iters train_samples lr_decay_iters lr_decay_samples lr_wsd_decay_iters
        lr_wsd_decay_samples recompute_num_layers eval_iters log_interval trace_schedule_step loss_scale_window
        hysteresis exit_interval keep_last_n_checkpoints save_retain_interval keep_best_n_checkpoints
        spiky_loss_window max_bad_steps straggler_intervals spiky_loss_factor straggler_factor""",
    "[0, inf)": """
        check_replicas_every lr_warmup_iters lr_warmup_samples seed data_prefetch_steps eval_interval save_interval
        fim_prefix_id fim_middle_id fim_suffix_id
        lr min_lr lr_warmup_init weight_decay clip_grad""",
    "(0, inf)": """
        rotary_base norm_epsilon init_method_std distributed_timeout_minutes exit_duration_in_mins adam_eps loss_scale
        initial_loss_scale min_loss_scale""",
    "[0, 1)": "hidden_dropout attention_dropout lr_warmup_fraction adam_beta1 adam_beta2",
    "[0, 1]": "fim_rate fim_spm_rate",
    "(0, 1]": "rotary_percent optimizer_offload_fraction",
}

RANGES: dict[str, Interval] = {
    name: _interval(text) for text, names in NAMES_BY_INTERVAL.items() for name in names.split()
}


def out_of_range(values: dict[str, Any]) -> dict[str, str]:
    """Setting -> what is wrong with its value, for each number outside its range; None is never outside."""
    wrong = {}
    for name, interval in RANGES.items():
        value = values[name]
        if value is None or value in interval:
            continue
        must_be = interval.words()
        if isinstance(value, float) and not math.isfinite(value):
            must_be = f"a finite number, {must_be}"
        wrong[name] = f"{name.replace('_', '-')} ({value}) must be {must_be}"
    return wrong
