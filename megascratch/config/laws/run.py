"""The laws of what a run does around its steps: recomputation, checkpoints, bad steps, forced changes on resume.

See `laws/__init__.py` for how a law works.
"""

from collections.abc import Callable

from megascratch.config.fields import SETTINGS
from megascratch.config.hints import nearest
from megascratch.config.remedies import Broken, Remedy, divisors_near, each, near_multiples
from megascratch.config.resume_rules import CAN_BE_FORCED


def details_are_for_full(
    recompute_granularity: str, recompute_method: str | None, recompute_num_layers: int | None
) -> str | None:
    """Method and number of layers apply only to full recomputation."""
    details = {"recompute-method": recompute_method, "recompute-num-layers": recompute_num_layers}
    given = [f"{name} ({value})" for name, value in details.items() if value is not None]
    if recompute_granularity == "full" or not given:
        return None
    names = " and ".join(given)
    return (
        f"{names} needs recompute-granularity full, not {recompute_granularity}: "
        "use full, or remove it"
    )


PARTS = ("core_attn", "layernorm", "mlp", "activation")
AWAY = ("core_attn", "layernorm", "mlp")
"""Parts that can wait in host memory."""
OTHER_PARTS = {
    "moe": "mixture of experts",
    "moe_act": "mixture of experts",
    "shared_experts": "mixture of experts",
    "mla_up_proj": "multi-latent attention",
}
"""Parts that Megatron-LM recomputes in layers that are not here."""


def recomputed_parts_are_known(recompute_modules: list[str]) -> str | None:
    """Selective recomputation is of parts that a layer has."""
    for name in recompute_modules:
        if name not in PARTS:
            problem = "is not a part of a layer"
            if name in OTHER_PARTS:
                problem = f"needs {OTHER_PARTS[name]}, which is not implemented here"
            return (
                f"recompute-modules: {name} {problem}: use {', '.join(PARTS[:-1])} or {PARTS[-1]}"
            )
    return None


def offloaded_parts_are_known(
    offload_modules: list[str], recompute_modules: list[str] | None, recompute_granularity: str
) -> str | None:
    """Activations wait in host memory, or are computed again, not both."""
    for name in offload_modules:
        if name not in AWAY:
            return (
                f"offload-modules: {name} is not a part that can wait in host memory: use {', '.join(AWAY[:-1])} or "
                f"{AWAY[-1]}"
            )
        if recompute_granularity == "full" or name in (recompute_modules or []):
            return (
                f"offload-modules and recomputation (recompute-granularity {recompute_granularity}) both name {name}: "
                "remove it from one of them"
            )
    return None


def layers_are_there_to_recompute(recompute_num_layers: int, num_layers: int) -> Broken | None:
    """A group of layers is not larger than the model."""
    if recompute_num_layers <= num_layers:
        return None
    return Broken(
        f"recompute-num-layers ({recompute_num_layers}) must not exceed num-layers ({num_layers})",
        [Remedy("recompute_num_layers", [[num_layers]], " or less")],
    )


def best_needs_a_validation_at_each_save(
    keep_best_n_checkpoints: int, save_interval: int, eval_interval: int, eval_iters: int
) -> Broken | None:
    """The best checkpoints are chosen by the validation loss of their own weights."""
    if eval_iters == 0:
        return Broken(
            f"keep-best-n-checkpoints ({keep_best_n_checkpoints}) needs validations, but eval-iters is 0",
            [Remedy("eval_iters", [[1]], " or more")],
        )
    if eval_interval > 0 and save_interval % eval_interval == 0:
        return None
    if eval_interval == 0:
        return Broken(
            f"keep-best-n-checkpoints ({keep_best_n_checkpoints}) needs validations, but eval-interval is 0",
            [Remedy("eval_interval", [[save_interval or 1]])],
        )
    return Broken(
        f"keep-best-n-checkpoints ({keep_best_n_checkpoints}) needs a validation at every save: save-interval "
        f"({save_interval}) must be divisible by eval-interval ({eval_interval})",
        [
            Remedy("save_interval", near_multiples(save_interval, eval_interval)),
            Remedy("eval_interval", each(divisors_near(save_interval, eval_interval))),
        ],
    )


def retained_steps_are_saved(save_retain_interval: int, save_interval: int) -> Broken | None:
    """Only a step that is saved can be kept."""
    if save_interval == 0 or save_retain_interval % save_interval == 0:
        return None
    return Broken(
        f"save-retain-interval ({save_retain_interval}) must be divisible by save-interval ({save_interval})",
        [Remedy("save_retain_interval", near_multiples(save_retain_interval, save_interval))],
    )


def what_continues_has_its_optimizer(
    save_optim: bool, auto_resume: bool, on_bad_step: str
) -> str | None:
    """A checkpoint without the state of the optimizer cannot continue a run."""
    if save_optim:
        return None
    if on_bad_step == "rollback":
        return "on-bad-step rollback needs the state of the optimizer in checkpoints: remove no-save-optim"
    if auto_resume:
        return (
            "auto-resume (which max-restarts implies) needs the state of the optimizer in checkpoints: "
            "remove no-save-optim"
        )
    return None


def forced_by_a_known_name(force_resume: list[str] | None) -> str | None:
    """Only settings that a resume can refuse can be forced."""
    names = [word.replace("-", "_") for word in force_resume or ()]
    wrong = [name for name in names if name not in CAN_BE_FORCED]
    if not wrong:
        return None
    known = [name for name in wrong if name in SETTINGS]
    if known:
        return (
            f"force-resume {known[0]}: it may change without force, or cannot be forced: "
            "see megascratch pretrain --print-resume-rules"
        )
    return f"force-resume {wrong[0]} is not a setting{nearest(wrong[0], CAN_BE_FORCED)}"


def rollback_has_a_checkpoint(on_bad_step: str, save_interval: int) -> str | None:
    """Rolling back needs a checkpoint."""
    if on_bad_step != "rollback" or save_interval > 0:
        return None
    return "on-bad-step rollback needs checkpoints during training: give save-interval, the steps between checkpoints"


def rollback_needs_an_endless_order(on_bad_step: str, data_order: str) -> str | None:
    """A run that skips samples needs more of them; Megatron's order is built for a fixed number."""
    if on_bad_step != "rollback" or data_order != "megatron":
        return None
    return (
        "on-bad-step rollback needs more samples than data-order megatron is built for: "
        "use on-bad-step skip, or data-order keyed"
    )


def something_makes_a_bad_step(
    on_bad_step: str, check_for_nan_in_loss_and_grad: bool, check_for_spiky_loss: bool
) -> str | None:
    """An action for bad steps needs a check that finds them."""
    if on_bad_step == "stop" or check_for_nan_in_loss_and_grad or check_for_spiky_loss:
        return None
    return (
        f"on-bad-step {on_bad_step} needs check-for-nan-in-loss-and-grad or check-for-spiky-loss: "
        "without one no step is bad"
    )


def injected_errors_are_computed_again(
    error_injection_rate: int, rerun_bad_steps: bool
) -> Broken | None:
    """The kinds of injected errors differ in a second computation."""
    if error_injection_rate == 0 or rerun_bad_steps:
        return None
    return Broken(
        f"error-injection-rate ({error_injection_rate}) needs rerun-bad-steps, by which its kinds differ",
        [Remedy("rerun_bad_steps", [[True]]), Remedy("error_injection_rate", [[0]])],
    )


def names_are_not_empty(
    output_dir: str,
    save: str | None,
    load: str | None,
    pretrained_checkpoint: str | None,
    tensorboard_dir: str | None,
    stop_file: str | None,
    data_cache_path: str | None,
    tokenizer_model: str | None,
    vocab_file: str | None,
    merge_file: str | None,
    pipeline_schedule_csv: str | None,
) -> str | None:
    """A file or folder that is given has a name: an empty one would be the current folder."""
    given = {
        "output-dir": output_dir,
        "save": save,
        "load": load,
        "pretrained-checkpoint": pretrained_checkpoint,
        "tensorboard-dir": tensorboard_dir,
        "stop-file": stop_file,
        "data-cache-path": data_cache_path,
        "tokenizer-model": tokenizer_model,
        "vocab-file": vocab_file,
        "merge-file": merge_file,
        "pipeline-schedule-csv": pipeline_schedule_csv,
    }
    empty = [name for name, path in given.items() if path == ""]
    if not empty:
        return None
    return f"{', '.join(empty)} is empty: give the name of a file or folder, or remove the setting"


def profile_ends_after_its_start(profile_step_start: int, profile_step_end: int) -> Broken | None:
    """A profile has a step."""
    if profile_step_end > profile_step_start:
        return None
    return Broken(
        f"profile-step-end ({profile_step_end}) must be larger than profile-step-start ({profile_step_start})",
        [
            Remedy("profile_step_end", [[profile_step_start + 1]], " or more"),
            Remedy("profile_step_start", [[profile_step_end - 1]], " or less"),
        ],
    )


def profiled_ranks_are_there(profile_ranks: list[int] | None, world_size: int) -> str | None:
    """Only ranks of the run can be profiled."""
    absent = [rank for rank in profile_ranks or () if not 0 <= rank < world_size]
    if not absent:
        return None
    return f"profile-ranks: {absent[0]} is not a rank of this run: use 0 to {world_size - 1}"


def none_is_the_only_sink(log_to: list[str] | None) -> str | None:
    """'none' means that the numbers go nowhere else."""
    others = [name for name in log_to or () if name != "none"]
    if not others or len(others) == len(log_to or ()):
        return None
    return (
        f"log-to none cannot be combined with {' and '.join(others)}: remove none, or give it alone"
    )


LAWS: list[Callable[..., str | Broken | None]] = [
    details_are_for_full,
    recomputed_parts_are_known,
    offloaded_parts_are_known,
    layers_are_there_to_recompute,
    best_needs_a_validation_at_each_save,
    retained_steps_are_saved,
    what_continues_has_its_optimizer,
    forced_by_a_known_name,
    rollback_has_a_checkpoint,
    rollback_needs_an_endless_order,
    something_makes_a_bad_step,
    injected_errors_are_computed_again,
    names_are_not_empty,
    none_is_the_only_sink,
    profile_ends_after_its_start,
    profiled_ranks_are_there,
]
