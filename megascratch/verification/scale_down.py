"""`--scale-down`: turns any config into one that this machine can train in seconds. Needs no torch.

The model is shrunk as for a verification (see `shrink.py`): the same kinds of layers, and every divisibility that the
layout relies on. The layout is the nearest one of the ranks that are there (`fewer_ranks.py`). The run has a few steps,
in which whatever happens in a run happens: warm-up, validation, saves. What lies outside of its own folder is neither
read nor written; data or a tokenizer that are not on this machine are replaced by synthetic text.

What is wrong with the config itself, on ranks of its own, is refused as without `--scale-down`.
"""

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from megascratch.config.batch_schedule import read_schedule
from megascratch.config.errors import SettingError, UserError
from megascratch.config.fields import SETTINGS, flat, with_fields
from megascratch.config.laws import broken_laws
from megascratch.config.layout import Layout
from megascratch.config.load import Loaded
from megascratch.config.registry import is_registered
from megascratch.config.resolve import Found, Values, derive, resolve_derived
from megascratch.config.settings import DataConfig
from megascratch.data.samples.split_spec import named_prefixes
from megascratch.data.tokens.missing import require_corpus
from megascratch.storage.path import storage_path
from megascratch.tokenizer.simple import ByteTokenizer, NullTokenizer
from megascratch.training.start.inputs import open_tokenizer
from megascratch.verification.fewer_ranks import on_ranks
from megascratch.verification.shrink import GPT2_VOCABULARY, LOSS_SCALE, ranks_of_heads, shrunk
from megascratch.verification.small_layout import small_batch, small_cut

STEPS = 3
EVERY = 2  # steps between validations, and between saves
_CORPORA = ("data_path", "train_data_path", "valid_data_path", "test_data_path")
TOKENIZER_FILES = ("tokenizer_model", "vocab_file", "merge_file")
_FIM_IDS = ("fim_prefix_id", "fim_middle_id", "fim_suffix_id")
_FIM_TOKENS = ("fim_prefix_token", "fim_middle_token", "fim_suffix_token")
_NEED_DOCUMENT_ENDS = ("reset_position_ids", "reset_attention_mask", "eod_mask_loss", "fim_rate")
_TRACKERS = ("wandb", "trackio", "otel")


def scaled_down(loaded: Loaded, world: int) -> Loaded:
    """The config for `world` ranks of this machine; origins and notices say what was changed to what.

    Raises: SettingError with everything that is wrong with the config on ranks of its own.
    """
    given = flat(loaded.config)
    own_world = Layout.of_values(given).world
    whole = _on_this_machine(given)
    problems = loaded.problems
    problems += broken_laws(whole, derive(whole, own_world), own_world, loaded.unread)
    if problems:
        raise SettingError("\n".join(problems))
    now = derive(given, own_world)
    small = _small_settings(whole, world)
    changed = [name for name in SETTINGS if small[name] != now[name] and small[name] != given[name]]
    places = dict(loaded.origins.places)
    for name in changed:
        places[name] = f"scale-down, was {_words(now[name])}"
    notices = loaded.origins.notices + _report(changed, now, small, world)
    origins = replace(loaded.origins, places=places, notices=notices)
    return Loaded(with_fields(loaded.config, small), origins, [], set())


def files_are_here(settings: Values, names: Iterable[str]) -> bool:
    """Whether every file that these settings name can be read on this machine."""
    paths = [settings[name] for name in names if settings[name] is not None]
    return all(os.access(path, os.R_OK) for path in paths)


def _on_this_machine(given: Values) -> dict[str, Any]:
    """All settings of the whole run, as this machine could start it."""
    values = dict(given) | _without_the_limits_of_others(given)
    values |= _own_folders(values)
    values |= _text(values)
    if values["train_iters"] is None and values["train_samples"] is None:
        values["train_iters"] = STEPS
    return values


def _small_settings(given: Values, world: int) -> dict[str, Any]:
    """All settings of the small run; `given` are legal."""
    whole = dict(given) | on_ranks(given, world)
    keeps_vocabulary = not whole["mock_data"] or _has_a_vocabulary_of_its_own(whole)
    known = whole | {"vocab_size": whole["vocab_size"] or _size_of_tokenizer(whole)}
    config = resolve_derived(derive(known, world), Found())
    batch = small_batch(config.training, config.parallel)
    if given["microbatch_group_size_per_virtual_pipeline_stage"] is None:
        del batch["microbatch_group_size_per_virtual_pipeline_stage"]
    if given["global_batch_size"] is None:
        del batch["global_batch_size"]
    cut = small_cut(config.model, config.parallel)
    narrow = shrunk(known, ranks_of_heads(known), known["context_parallel_size"])
    small = {**narrow, **cut, **batch}
    if given["recompute_num_layers"] is None:
        small["recompute_num_layers"] = None
    if keeps_vocabulary:
        small["vocab_size"] = whole["vocab_size"]
    elif whole["fim_rate"]:
        small |= {name: number for number, name in enumerate(_FIM_IDS)}
    return small | _short_run(small, world)


def _without_the_limits_of_others(given: Values) -> dict[str, Any]:
    """Settings that are about the machines of the whole run: the devices and libraries here decide."""
    sinks = given["log_to"]
    if sinks is not None:
        sinks = [name for name in sinks if name not in _TRACKERS] or None
    return {
        "device": given["device"] if given["device"] == "cpu" else None,
        "distributed_backend": None,
        "compile": False,
        "ddp_bucket_size": None,
        "log_to": sinks,
    }


def _own_folders(given: Values) -> dict[str, Any]:
    """What is outside of the folder of the run is neither read nor written."""
    inside = Path(given["output_dir"]).absolute()
    changes: dict[str, Any] = {}
    for name in ("load", "save", "pretrained_checkpoint", "tensorboard_dir", "stop_file"):
        path = given[name]
        if path is None:
            continue
        place = storage_path(path)
        if not isinstance(place, Path) or not place.absolute().is_relative_to(inside):
            changes[name] = None
    if "load" in changes:
        changes |= {"ckpt_step": None, "finetune": False, "use_checkpoint_args": False}
        changes |= {"force_resume": None, "skip_train": False}
    return changes


def _text(given: Values) -> dict[str, Any]:
    """Synthetic text in place of data or of a tokenizer that are not on this machine, or not named."""
    corpora = any(given[name] for name in _CORPORA)
    if corpora and given["mock_data"]:
        return {}  # which of the two is meant?
    has_data = given["mock_data"] or (corpora and _corpora_are_here(given))
    if has_data and _tokenizer_is_here(given):
        return {}
    changes: dict[str, Any] = dict.fromkeys((*_CORPORA, "data_stages", "split", "data_cache_path"))
    changes |= {"mock_data": True, "vocab_size": given["vocab_size"] or GPT2_VOCABULARY}
    changes |= dict.fromkeys((*TOKENIZER_FILES, "tokenizer_type"))
    if any(given[name] for name in _NEED_DOCUMENT_ENDS):
        changes["tokenizer_type"] = NullTokenizer.kind
    if given["fim_rate"]:
        changes |= {name: number for number, name in enumerate(_FIM_IDS)}
    return changes | dict.fromkeys(_FIM_TOKENS)


def _tokenizer_is_here(given: Values) -> bool:
    """Whether the size of the vocabulary can be known on this machine, and documents end where that matters."""
    files = [name for name in TOKENIZER_FILES if given[name] is not None]
    kind = given["tokenizer_type"]
    if files:
        return files_are_here(given, files)
    if kind is None:
        return given["vocab_size"] is not None
    return kind in (ByteTokenizer.kind, NullTokenizer.kind) or is_registered("tokenizer", kind)


def _corpora_are_here(given: Values) -> bool:
    """Whether every corpus that the settings name is complete on this machine."""
    blends = [given[name] for name in _CORPORA]
    blends += [stage.split()[1:] for stage in given["data_stages"] or ()]
    for blend in blends:
        if any(not isinstance(storage_path(word), Path) for word in blend or ()):
            return False
    try:
        for prefix in named_prefixes(blends):
            require_corpus(prefix)
    except UserError:
        return False
    return True


def _has_a_vocabulary_of_its_own(settings: Values) -> bool:
    """Whether the tokenizer says how large the vocabulary is."""
    has_file = any(settings[name] for name in TOKENIZER_FILES)
    return has_file or settings["tokenizer_type"] not in (None, NullTokenizer.kind)


def _size_of_tokenizer(settings: Values) -> int:
    """Raises: UserError if the tokenizer cannot be read."""
    data = {name: settings[name] for name in vars(DataConfig())}
    tokenizer = open_tokenizer(DataConfig(**data), None)
    assert tokenizer is not None  # law `vocabulary_is_known`
    return tokenizer.vocab_size


def _short_run(small: Values, world: int) -> dict[str, Any]:
    """A few steps in which whatever happens in the whole run happens: lengths of its schedules, intervals."""
    steps = STEPS
    changes: dict[str, Any] = {"log_interval": 1}
    if small["rampup_batch_size"] is not None:
        changes |= _short_rampup(small, world)
    if small["step_batch_size_schedule"] is not None:
        changes |= _short_schedule_of_batches(small, world)
    batch = derive({**small, **changes}, world)["global_batch_size"]
    if small["train_iters"] is not None:
        steps = min(STEPS, small["train_iters"])
        changes["train_iters"] = steps
    units = {"iters": 1, "samples": batch}
    if small["train_samples"] is not None:
        changes["train_samples"] = min(STEPS * batch, small["train_samples"])
    most = {"lr_decay": steps, "lr_warmup": min(1, steps - 1), "lr_wsd_decay": 1}
    for unit, size in units.items():
        for phase, length in most.items():
            name = f"{phase}_{unit}"
            if small[name]:
                changes[name] = min(small[name], length * size)
    for name, most_steps in _INTERVALS.items():
        if small[name]:
            changes[name] = min(small[name], most_steps)
    if small["profile"]:
        changes |= {"profile_step_start": 1, "profile_step_end": STEPS}
    if small["keep_best_n_checkpoints"] or small["save_retain_interval"]:
        changes |= {"save_interval": EVERY, "eval_interval": EVERY}
    if small["save_retain_interval"]:
        changes["save_retain_interval"] = EVERY
    if small["fp16"] and small["loss_scale"] is None:
        # from 2^32 on, every step of a few would overflow
        scale = LOSS_SCALE["initial_loss_scale"]
        least = small["min_loss_scale"]
        changes["initial_loss_scale"] = max(least, min(scale, small["initial_loss_scale"]))
    if small["eval_global_batch_size"] is not None:
        changes["eval_global_batch_size"] = batch
    if small["eval_micro_batch_size"] is not None:
        changes["eval_micro_batch_size"] = small["micro_batch_size"]
    return changes


_INTERVALS = {
    "eval_interval": EVERY,
    "eval_iters": 1,
    "save_interval": EVERY,
    "check_replicas_every": EVERY,
    "trace_schedule_step": STEPS,
}
"""Setting -> the largest value that still has an effect in a few steps."""


def _short_rampup(small: Values, world: int) -> dict[str, Any]:
    """From one micro-batch on each copy to the whole batch, by as much in each step."""
    now = derive(small, world)
    unit = small["micro_batch_size"] * now["data_parallel_size"]
    whole = max(now["global_batch_size"], 2 * unit)
    return {"rampup_batch_size": [unit, whole - unit, unit], "global_batch_size": whole}


def _short_schedule_of_batches(small: Values, world: int) -> dict[str, Any]:
    """As many batch sizes as there are, but at most one for each step, from one micro-batch on each copy on. Which
    sizes are larger than others stays."""
    unit = small["micro_batch_size"] * derive(small, world)["data_parallel_size"]
    sizes = [one.size for one in read_schedule(small["step_batch_size_schedule"], 1)][-STEPS:]
    order = sorted(set(sizes))
    entries = []
    begin = 0
    for size in sizes:
        small_size = unit * (order.index(size) + 1)
        entries.append(f"{begin}s:{small_size}")
        begin += small_size
    changes: dict[str, Any] = {"step_batch_size_schedule": " ".join(entries)}
    if small["global_batch_size"] is not None:
        changes["global_batch_size"] = small_size
    return changes


def _report(changed: Iterable[str], now: Values, small: Values, world: int) -> list[str]:
    """A line for each section: what was changed from what to what."""
    by_section: dict[str, list[str]] = {}
    for name in changed:
        change = f"{name.replace('_', '-')} {_words(now[name])} -> {_words(small[name])}"
        by_section.setdefault(SETTINGS[name].section, []).append(change)
    ranks = "1 rank" if world == 1 else f"{world} ranks"
    lines = []
    for section, changes in by_section.items():
        lines.append(f"scaled down for {ranks}, {section}: {', '.join(changes)}")
    return lines


def _words(value: Any) -> str:
    """A value as on a command line; a path of any length in its end."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"...{text[-37:]}"
