"""Settings that break a law on the course of a run (`config/laws/run.py`), with a part of the complaint."""

BROKEN_RUN_LAWS = [
    (
        "best_needs_a_validation_at_each_save",
        1,
        {"keep_best_n_checkpoints": 2, "save_interval": 30, "eval_interval": 20},
        "save-interval (30) must be divisible by eval-interval (20): use save-interval 20 or 40",
    ),
    (
        "best_needs_a_validation_at_each_save",
        1,
        {"keep_best_n_checkpoints": 2, "save_interval": 30, "eval_interval": 0},
        "keep-best-n-checkpoints (2) needs validations, but eval-interval is 0: use eval-interval 30",
    ),
    (
        "best_needs_a_validation_at_each_save",
        1,
        {
            "keep_best_n_checkpoints": 2,
            "save_interval": 30,
            "eval_interval": 30,
            "eval_iters": 0,
        },
        "needs validations, but eval-iters is 0: use eval-iters 1 or more",
    ),
    (
        "what_continues_has_its_optimizer",
        1,
        {"save_optim": False, "auto_resume": True},
        "auto-resume (which max-restarts implies) needs the state of the optimizer",
    ),
    (
        "what_continues_has_its_optimizer",
        1,
        {"save_optim": False, "on_bad_step": "rollback", "save_interval": 2},
        "on-bad-step rollback needs the state of the optimizer in checkpoints: remove no-save-optim",
    ),
    (
        "retained_steps_are_saved",
        1,
        {"save_retain_interval": 70, "save_interval": 20},
        "save-retain-interval (70) must be divisible by save-interval (20): use save-retain-interval 60 or 80",
    ),
    (
        "forced_by_a_known_name",
        1,
        {"force_resume": ["seed", "slit"]},
        "slit is not a setting - did you mean split?",
    ),
    (
        "forced_by_a_known_name",
        1,
        {"force_resume": ["num_layers"]},
        "it may change without force, or cannot be forced",
    ),
    ("rollback_has_a_checkpoint", 1, {"on_bad_step": "rollback"}, "give save-interval"),
    (
        "rollback_needs_an_endless_order",
        1,
        {"on_bad_step": "rollback", "save_interval": 2, "data_order": "megatron"},
        "use on-bad-step skip, or",
    ),
    (
        "something_makes_a_bad_step",
        1,
        {"on_bad_step": "skip", "check_for_nan_in_loss_and_grad": False},
        "on-bad-step skip needs check-for-nan-in-loss-and-grad or check-for-spiky-loss",
    ),
    (
        "injected_errors_are_computed_again",
        1,
        {"error_injection_rate": 5},
        "error-injection-rate (5) needs rerun-bad-steps, by which its kinds differ",
    ),
    (
        "names_are_not_empty",
        1,
        {"load": "", "save": ""},
        "save, load is empty: give the name of a file or folder",
    ),
    (
        "none_is_the_only_sink",
        1,
        {"log_to": ["none", "wandb"]},
        "log-to none cannot be combined with wandb: remove none, or give it alone",
    ),
]
