"""The laws of precision and of the learning rate; see `laws/__init__.py` for how a law works."""

from collections.abc import Callable

from megascratch.config.remedies import Broken, Remedy
from megascratch.config.settings import OptimConfig


def one_precision(bf16: bool, fp16: bool, fp64: bool) -> str | None:
    """Weights have one type."""
    types = {"bf16": bf16, "fp16": fp16, "fp64": fp64}
    given = [name for name, on in types.items() if on]
    if len(given) > 1:
        return f"at most one of {', '.join(given)} can be the precision: choose one"
    return None


def loss_scale_is_for_fp16(
    fp16: bool,
    loss_scale: float | None,
    initial_loss_scale: float,
    min_loss_scale: float,
    loss_scale_window: int,
    hysteresis: int,
) -> str | None:
    """Only fp16 uses a loss scale, and settings of the dynamic scale have no effect on a constant one."""
    dynamic = {
        "initial_loss_scale": initial_loss_scale,
        "min_loss_scale": min_loss_scale,
        "loss_scale_window": loss_scale_window,
        "hysteresis": hysteresis,
    }
    changed = [
        name.replace("_", "-")
        for name, value in dynamic.items()
        if value != getattr(OptimConfig, name)
    ]
    if not fp16 and (changed or loss_scale is not None):
        given = ["loss-scale"] * (loss_scale is not None) + changed
        return f"{', '.join(given)} needs fp16: use fp16, or remove it"
    if loss_scale is not None and changed:
        names = ", ".join(changed)
        return (
            f"{names} is for a dynamic loss scale, but loss-scale ({loss_scale}) is constant: "
            "remove one"
        )
    if min_loss_scale > initial_loss_scale:
        return f"min-loss-scale ({min_loss_scale}) must not exceed initial-loss-scale ({initial_loss_scale})"
    return None


def rates_are_in_order(lr: float, min_lr: float, lr_warmup_init: float) -> Broken | None:
    """No learning rate is above `lr`."""
    highest = max(min_lr, lr_warmup_init)
    if highest <= lr:
        return None
    rates = {"min_lr": min_lr, "lr_warmup_init": lr_warmup_init}
    above = [name for name, value in rates.items() if value > lr]
    rates_text = " and ".join(f"{name.replace('_', '-')} ({rates[name]})" for name in above)
    remedies = [Remedy("lr", [[highest]], " or more")]
    if len(above) == 1:
        remedies.insert(0, Remedy(above[0], [[lr]], " or less"))
    return Broken(f"{rates_text} must not exceed lr ({lr})", remedies)


def decoupled_rates_are_in_order(
    decoupled_lr: float | None, decoupled_min_lr: float | None, min_lr: float, lr_warmup_init: float
) -> Broken | None:
    """No learning rate of the embedding and the output layer is above `decoupled_lr`."""
    if decoupled_lr is None:
        return None
    name = "min_lr" if decoupled_min_lr is None else "decoupled_min_lr"
    lowest = min_lr if decoupled_min_lr is None else decoupled_min_lr
    if lowest > decoupled_lr:
        return Broken(
            f"{name.replace('_', '-')} ({lowest}) must not exceed decoupled-lr ({decoupled_lr})",
            [
                Remedy("decoupled_min_lr", [[decoupled_lr]], " or less"),
                Remedy("decoupled_lr", [[lowest]], " or more"),
            ],
        )
    if lr_warmup_init > decoupled_lr:
        return Broken(
            f"lr-warmup-init ({lr_warmup_init}) must not exceed decoupled-lr ({decoupled_lr})",
            [
                Remedy("lr_warmup_init", [[decoupled_lr]], " or less"),
                Remedy("decoupled_lr", [[lr_warmup_init]], " or more"),
            ],
        )
    return None


def weight_decay_has_two_ends(
    weight_decay_incr_style: str,
    start_weight_decay: float | None,
    end_weight_decay: float | None,
) -> str | Broken | None:
    """A weight decay that changes has a start and an end; a constant one has neither."""
    ends = {"start-weight-decay": start_weight_decay, "end-weight-decay": end_weight_decay}
    if weight_decay_incr_style == "constant":
        given = [f"{name} ({value})" for name, value in ends.items() if value is not None]
        if given:
            return (
                f"{' and '.join(given)} needs weight-decay-incr-style linear or cosine: choose one, or use "
                "weight-decay alone"
            )
        return None
    missing = [name for name, value in ends.items() if value is None]
    if missing:
        return (
            f"weight-decay-incr-style {weight_decay_incr_style} needs {' and '.join(missing)}: give both ends, or "
            "weight-decay alone"
        )
    assert start_weight_decay is not None and end_weight_decay is not None
    if start_weight_decay > end_weight_decay:
        return Broken(
            f"start-weight-decay ({start_weight_decay}) must not exceed end-weight-decay ({end_weight_decay})",
            [
                Remedy("start_weight_decay", [[end_weight_decay]], " or less"),
                Remedy("end_weight_decay", [[start_weight_decay]], " or more"),
            ],
        )
    return None


def decay_has_the_unit_of_the_run(
    train_iters: int | None,
    train_samples: int | None,
    lr_decay_iters: int | None,
    lr_decay_samples: int | None,
    lr_warmup_iters: int,
    lr_warmup_samples: int,
    lr_wsd_decay_iters: int | None,
    lr_wsd_decay_samples: int | None,
) -> str | None:
    """A run in steps decays in steps, a run in samples decays in samples."""
    if (train_iters is None) == (train_samples is None):
        return None
    by_iters = {
        "lr-decay": lr_decay_iters,
        "lr-warmup": lr_warmup_iters or None,
        "lr-wsd-decay": lr_wsd_decay_iters,
    }
    by_samples = {
        "lr-decay": lr_decay_samples,
        "lr-warmup": lr_warmup_samples or None,
        "lr-wsd-decay": lr_wsd_decay_samples,
    }
    if train_iters:
        unit = "iters"
        other = "samples"
        wrong = by_samples
    else:
        unit = "samples"
        other = "iters"
        wrong = by_iters
    given = {name: value for name, value in wrong.items() if value is not None}
    if not given:
        return None
    given_text = ", ".join(f"{name}-{other} ({value})" for name, value in given.items())
    instead = ", ".join(f"{name}-{unit}" for name in given)
    return f"{given_text} cannot be combined with train-{unit}: use {instead}"


def one_warmup(
    lr_warmup_iters: int, lr_warmup_samples: int, lr_warmup_fraction: float | None
) -> str | None:
    """The length of the warm-up is given in one unit."""
    units = {"iters": lr_warmup_iters, "samples": lr_warmup_samples, "fraction": lr_warmup_fraction}
    given = [f"lr-warmup-{unit} ({value})" for unit, value in units.items() if value]
    if len(given) > 1:
        return f"warm-up is given twice, by {' and '.join(given)}: keep one"
    return None


def phases_fit_the_decay(
    lr_decay_style: str,
    lr_decay_iters: int | None,
    lr_decay_samples: int | None,
    lr_warmup_iters: int,
    lr_warmup_samples: int,
    lr_wsd_decay_iters: int | None,
    lr_wsd_decay_samples: int | None,
) -> Broken | None:
    """Warm-up and WSD's last phase together are no longer than the decay."""
    if lr_decay_style == "constant":
        return None
    for unit, length, warmup, last in (
        ("iters", lr_decay_iters, lr_warmup_iters, lr_wsd_decay_iters),
        ("samples", lr_decay_samples, lr_warmup_samples, lr_wsd_decay_samples),
    ):
        after_warmup = last or 0
        if length is None or warmup + after_warmup <= length:
            continue
        phases = f"lr-warmup-{unit} ({warmup})"
        remedies = [Remedy(f"lr_warmup_{unit}", [[length - after_warmup]], " or less")]
        if last:
            phases += f" + lr-wsd-decay-{unit} ({last})"
            remedies.append(Remedy(f"lr_wsd_decay_{unit}", [[length - warmup]], " or less"))
        remedies.append(Remedy(f"lr_decay_{unit}", [[warmup + after_warmup]], " or more"))
        return Broken(f"{phases} must not exceed lr-decay-{unit} ({length})", remedies)
    return None


def wsd_has_a_last_phase(
    lr_decay_style: str,
    train_samples: int | None,
    lr_wsd_decay_iters: int | None,
    lr_wsd_decay_samples: int | None,
    lr_decay_iters: int | None,
    lr_decay_samples: int | None,
) -> str | Broken | None:
    """WSD needs the length of its last phase; other shapes have none."""
    given = lr_wsd_decay_iters is not None or lr_wsd_decay_samples is not None
    unit = "samples" if train_samples is not None else "iters"
    if lr_decay_style == "WSD" and not given:
        length = lr_decay_samples if train_samples is not None else lr_decay_iters
        tenth = max(1, (length or 1) // 10)  # as in the papers
        return Broken(
            f"lr-decay-style WSD needs lr-wsd-decay-{unit}, the length of its last phase",
            [Remedy(f"lr_wsd_decay_{unit}", [[tenth]])],
            "use another lr-decay-style",
        )
    if lr_decay_style != "WSD" and given:
        return f"lr-wsd-decay-{unit} needs lr-decay-style WSD, not {lr_decay_style}: use WSD, or remove it"
    return None


LAWS: list[Callable[..., str | Broken | None]] = [
    one_precision,
    loss_scale_is_for_fp16,
    rates_are_in_order,
    decoupled_rates_are_in_order,
    weight_decay_has_two_ends,
    decay_has_the_unit_of_the_run,
    one_warmup,
    phases_fit_the_decay,
    wsd_has_a_last_phase,
]
