"""Settings that break a law of precision and rates (`config/laws/optim.py`), with a part of the complaint."""

SAMPLES = {"train_iters": None, "train_samples": 100}

BROKEN_OPTIM_LAWS = [
    (
        "schedule_of_batches_is_readable",
        1,
        {"step_batch_size_schedule": "0:8 5q:16"},
        "'5q' is not a number such as 256, 2.4B or 300M: write THRESHOLD:SIZE",
    ),
    (
        "schedule_of_batches_is_readable",
        1,
        {"step_batch_size_schedule": "1M:8"},
        "its first threshold must be 0, not 976 samples",
    ),
    (
        "schedule_of_batches_is_readable",
        1,
        {"step_batch_size_schedule": "0:8 1023:16"},
        "two batch sizes, 8 and 16, begin at sample 0",
    ),
    (
        "schedule_of_batches_ends_at_the_full_size",
        1,
        {"step_batch_size_schedule": "0:8 1M:16", "global_batch_size": 8},
        'global-batch-size (8) contradicts step-batch-size-schedule ("0:8 1M:16"), which ends with 16: use '
        "global-batch-size 16, or remove global-batch-size",
    ),
    (
        "scheduled_batches_are_whole",
        2,
        {"step_batch_size_schedule": "0:6 1M:16", "micro_batch_size": 2},
        "micro-batch-size x data parallel size (2 x 2), unlike 6: the nearest sizes are 4 or 8",
    ),
    (
        "one_change_of_batches",
        1,
        {"step_batch_size_schedule": "0:8 1M:16", "rampup_batch_size": [8, 8, 9]},
        'step-batch-size-schedule ("0:8 1M:16") and rampup-batch-size (8 8 9) both change the batch size',
    ),
    (
        "scheduled_batches_need_a_schedule_of_any_size",
        2,
        {
            "pipeline_model_parallel_size": 2,
            "step_batch_size_schedule": "0:8 1M:16",
            "pipeline_schedule_csv": "x.csv",
        },
        'step-batch-size-schedule ("0:8 1M:16") cannot be combined with pipeline-schedule-csv (x.csv)',
    ),
    (
        "samples_fill_a_step",
        1,
        SAMPLES | {"step_batch_size_schedule": "0:101 1M:16"},
        "train-samples (100) must fill the first batch (101)",
    ),
    ("one_precision", 1, {"bf16": True, "fp64": True}, "at most one of bf16, fp64"),
    (
        "loss_scale_is_for_fp16",
        1,
        {"loss_scale": 8.0, "hysteresis": 3},
        "loss-scale, hysteresis needs fp16",
    ),
    (
        "loss_scale_is_for_fp16",
        1,
        {"fp16": True, "loss_scale": 8.0, "hysteresis": 3},
        "loss-scale (8.0) is constant",
    ),
    (
        "loss_scale_is_for_fp16",
        1,
        {"fp16": True, "initial_loss_scale": 0.5},
        "min-loss-scale (1.0) must not exceed",
    ),
    ("rates_are_in_order", 1, {"min_lr": 1.0}, "min-lr (1.0) must not exceed lr (0.0003)"),
    ("rates_are_in_order", 1, {"lr_warmup_init": 1.0}, "lr-warmup-init (1.0) must not exceed lr"),
    (
        "decoupled_rates_are_in_order",
        1,
        {"decoupled_lr": 0.5, "decoupled_min_lr": 0.75},
        "decoupled-min-lr (0.75) must not exceed decoupled-lr (0.5): use decoupled-min-lr 0.5 or less, or "
        "decoupled-lr 0.75 or more",
    ),
    (
        "decoupled_rates_are_in_order",
        1,
        {"decoupled_lr": 1e-5, "min_lr": 1e-4},
        "min-lr (0.0001) must not exceed decoupled-lr (1e-05): use decoupled-min-lr 1e-05 or less, or decoupled-lr "
        "0.0001 or more",
    ),
    (
        "decoupled_rates_are_in_order",
        1,
        {"decoupled_lr": 1e-5, "lr_warmup_init": 1e-4},
        "lr-warmup-init (0.0001) must not exceed decoupled-lr (1e-05)",
    ),
    (
        "weight_decay_has_two_ends",
        1,
        {"start_weight_decay": 0.1},
        "start-weight-decay (0.1) needs weight-decay-incr-style linear or cosine",
    ),
    (
        "weight_decay_has_two_ends",
        1,
        {"weight_decay_incr_style": "cosine", "end_weight_decay": 0.1},
        "weight-decay-incr-style cosine needs start-weight-decay: give both ends",
    ),
    (
        "weight_decay_has_two_ends",
        1,
        {"weight_decay_incr_style": "linear", "start_weight_decay": 0.2, "end_weight_decay": 0.1},
        "start-weight-decay (0.2) must not exceed end-weight-decay (0.1): use start-weight-decay 0.1 or less, or "
        "end-weight-decay 0.2 or more",
    ),
    (
        "decay_has_the_unit_of_the_run",
        1,
        {"lr_decay_samples": 9},
        "lr-decay-samples (9) cannot be combined with train-iters: use lr-decay-iters",
    ),
    (
        "decay_has_the_unit_of_the_run",
        1,
        SAMPLES | {"lr_warmup_iters": 9},
        "lr-warmup-iters (9) cannot be combined",
    ),
    (
        "one_warmup",
        1,
        {"lr_warmup_iters": 2, "lr_warmup_fraction": 0.1},
        "warm-up is given twice, by lr-warmup-iters (2) and lr-warmup-fraction (0.1)",
    ),
    (
        "phases_fit_the_decay",
        1,
        {"lr_warmup_iters": 11},
        "lr-warmup-iters (11) must not exceed lr-decay-iters (10): use lr-warmup-iters 10 or less",
    ),
    (
        "phases_fit_the_decay",
        1,
        {"lr_decay_style": "WSD", "lr_warmup_iters": 6, "lr_wsd_decay_iters": 5},
        "lr-warmup-iters (6) + lr-wsd-decay-iters (5) must not exceed lr-decay-iters (10): use lr-warmup-iters 5 "
        "or less, lr-wsd-decay-iters 4 or less, or lr-decay-iters 11 or more",
    ),
    ("wsd_has_a_last_phase", 1, {"lr_decay_style": "WSD"}, "WSD needs lr-wsd-decay-iters"),
    (
        "wsd_has_a_last_phase",
        1,
        {"lr_wsd_decay_iters": 5},
        "lr-wsd-decay-iters needs lr-decay-style WSD, not linear",
    ),
]
