"""Finds settings that were given but have no effect, so that none is ignored silently."""

from megascratch.config.batch_size import steps_and_samples
from megascratch.config.settings import (
    Config,
    DataConfig,
    GuardConfig,
    ModelConfig,
    OptimConfig,
    ParallelConfig,
    TrainingConfig,
)


def notices(config: Config) -> list[str]:
    """One sentence per setting that has no effect given the others, or is risky; needs a valid, derived config."""
    table = [*_table(config), *_saves(config.training), *_guard(config)]
    return [sentence for applies, sentence in table if applies]


def _table(config: Config) -> list[tuple[bool, str]]:
    model = config.model
    parallel = config.parallel
    data = config.data
    optim = config.optim
    rotates = model.position_embedding_type == "rope"
    return [
        (
            parallel.sequence_parallel and parallel.tensor_model_parallel_size == 1,
            "sequence-parallel has no effect with tensor-model-parallel-size 1",
        ),
        (
            parallel.use_distributed_optimizer and parallel.data_parallel_size == 1,
            "use-distributed-optimizer has no effect with one data-parallel rank",
        ),
        (
            not parallel.overlap_param_gather and not parallel.use_distributed_optimizer,
            "overlap-param-gather has no effect without use-distributed-optimizer",
        ),
        (
            parallel.optimizer_cpu_offload and config.training.device == "cpu",
            "optimizer-cpu-offload saves no memory with device cpu and adds copies",
        ),
        (
            not parallel.optimizer_cpu_offload
            and parallel.optimizer_offload_fraction != ParallelConfig.optimizer_offload_fraction,
            "optimizer-offload-fraction has no effect without optimizer-cpu-offload",
        ),
        (
            not rotates and model.rotary_base != ModelConfig.rotary_base,
            "rotary-base has no effect without position-embedding-type rope",
        ),
        (
            not rotates and model.rotary_percent != ModelConfig.rotary_percent,
            "rotary-percent has no effect without position-embedding-type rope",
        ),
        (
            model.position_embedding_type != "learned_absolute"
            and model.max_position_embeddings not in (None, data.seq_length),
            "max-position-embeddings has no effect without position-embedding-type learned_absolute",
        ),
        (
            model.add_qkv_bias and model.add_bias_linear,
            "add-qkv-bias has no effect: add-bias-linear already gives every linear layer a bias",
        ),
        (
            optim.lr_decay_style == "constant" and optim.min_lr != OptimConfig.min_lr,
            "min-lr has no effect with lr-decay-style constant",
        ),
        (
            optim.lr_decay_style != "WSD"
            and optim.lr_wsd_decay_style != OptimConfig.lr_wsd_decay_style,
            "lr-wsd-decay-style has no effect without lr-decay-style WSD",
        ),
        (
            bool(data.data_stages)
            and int((data.data_stages or ["0"])[-1].split()[0]) >= steps_and_samples(config)[1],
            "the last of data-stages begins after the last sample of the run: it is never read",
        ),
        (
            config.training.trace_schedule_step is not None and not config.training.trace_schedule,
            "trace-schedule-step has no effect without trace-schedule",
        ),
        (
            data.mock_data and data.data_cache_path != DataConfig.data_cache_path,
            "data-cache-path has no effect with mock-data",
        ),
    ]


def _saves(training: TrainingConfig) -> list[tuple[bool, str]]:
    return [
        (
            not training.async_save and training.save_interval == 0,
            "async-save has no effect with save-interval 0: no training runs while the only checkpoint is written",
        ),
        (
            training.keep_last_n_checkpoints == 1,
            "keep-last-n-checkpoints 1 leaves no other checkpoint if the newest one is damaged: 2 is safer",
        ),
    ]


def _guard(config: Config) -> list[tuple[bool, str]]:
    guard = config.guard
    return [
        (
            bool(guard.force_resume) and config.training.load is None,
            "force-resume has no effect without load",
        ),
        (
            not guard.check_for_spiky_loss
            and (guard.spiky_loss_factor, guard.spiky_loss_window)
            != (GuardConfig.spiky_loss_factor, GuardConfig.spiky_loss_window),
            "spiky-loss-factor and spiky-loss-window have no effect without check-for-spiky-loss",
        ),
        (
            guard.on_bad_step == "stop" and guard.max_bad_steps != GuardConfig.max_bad_steps,
            "max-bad-steps has no effect with on-bad-step stop",
        ),
    ]
