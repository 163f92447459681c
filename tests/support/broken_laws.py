"""Settings that break one law each, with a part of the complaint."""

from megascratch.config.fields import with_fields
from megascratch.config.settings import Config
from tests.support.broken_data_laws import BROKEN_DATA_LAWS
from tests.support.broken_optim_laws import BROKEN_OPTIM_LAWS
from tests.support.broken_pattern_laws import BROKEN_PATTERN_LAWS
from tests.support.broken_run_laws import BROKEN_RUN_LAWS

GOOD = {"mock_data": True, "vocab_size": 100, "train_iters": 10}
SAMPLES = {"train_iters": None, "train_samples": 100}


def config(**values) -> Config:
    return with_fields(Config(), GOOD | values)


def layout(tp=1, pp=1, chunks=None, **more):
    sizes = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}
    return sizes | ({"num_virtual_stages_per_pipeline_rank": chunks} if chunks else {}) | more


BROKEN = [
    # context parallelism
    (
        "sequence_over_context_ranks",
        3,
        layout(context_parallel_size=3, seq_length=64),
        "seq-length (64) must be divisible by 2 x context-parallel-size (3): use seq-length 60 or 66",
    ),
    (
        "sequence_over_context_ranks",
        8,
        layout(
            tp=4,
            context_parallel_size=2,
            sequence_parallel=True,
            seq_length=12,
            max_position_embeddings=64,
        ),
        "seq-length (12) must be divisible by 2 x context-parallel-size (2), and by 2 x tensor-model-parallel-size (4) "
        "with sequence-parallel: use seq-length 8 or 16",
    ),
    (
        "heads_over_context_ranks",
        8,
        layout(context_parallel_size=8, cp_comm_type="a2a"),
        "num-attention-heads (12) over tensor-model-parallel-size (1) is 12, which the 8 context ranks that exchange "
        "heads (cp-comm-type a2a) cannot share evenly: use context-parallel-size 1, 2 or 4, "
        "num-attention-heads 8 or 16, or cp-comm-type p2p",
    ),
    (
        "hierarchy_is_the_context_size",
        4,
        layout(context_parallel_size=4, cp_comm_type="a2a+p2p"),
        "cp-comm-type a2a+p2p needs hierarchical-context-parallel-sizes, the ranks that exchange heads and those "
        "of the ring: use 1 4, 2 2 or 4 1",
    ),
    (
        "hierarchy_is_the_context_size",
        4,
        layout(
            context_parallel_size=4,
            cp_comm_type="a2a+p2p",
            hierarchical_context_parallel_sizes=[2, 3],
        ),
        "hierarchical-context-parallel-sizes (2 3) must be two sizes whose product is context-parallel-size (4): use "
        "1 4, 2 2 or 4 1",
    ),
    (
        "every_mixer_shares_sequences",
        2,
        layout(context_parallel_size=2, mixers=["attention", "gated_delta_net"]),
        "context-parallel-size (2) divides each sequence, which mixers gated_delta_net do not allow: their state would "
        "have to travel from rank to rank: use context-parallel-size 1, or use attention in every layer",
    ),
    (
        "linear_heads_over_tp",
        3,
        layout(tp=3, mixers=["gated_delta_net"]),
        "linear-num-key-heads (16) must be divisible by tensor-model-parallel-size (3): use "
        "tensor-model-parallel-size 1",
    ),
    (
        "linear_value_heads_share_keys",
        1,
        {"linear_num_value_heads": 24, "mixers": ["attention", "gated_delta_net"]},
        "linear-num-value-heads (24) must be divisible by linear-num-key-heads (16): use linear-num-value-heads 16 or "
        "32, or linear-num-key-heads",
    ),
    # the model
    (
        "heads_share_the_width",
        1,
        {"hidden_size": 100},
        "hidden-size (100) must be divisible by num-attention-heads (12): use hidden-size 96 or 108, "
        "num-attention-heads 1, 2, 4, 5, 10, 20, 25 or 50, or give kv-channels",
    ),
    (
        "heads_share_the_query_groups",
        1,
        {"num_query_groups": 5},
        "num-attention-heads (12) must be divisible by num-query-groups (5): use num-query-groups 1, 2, 3, 4, 6 or 12",
    ),
    (
        "heads_over_tp",
        8,
        layout(tp=8),
        "num-attention-heads (12) must be divisible by tensor-model-parallel-size (8): use tensor-model-parallel-size "
        "1, 2 or 4, or num-attention-heads 8 or 16",
    ),
    (
        "query_groups_over_tp",
        6,
        layout(tp=6, num_query_groups=4),
        "num-query-groups (4) and tensor-model-parallel-size (6) do not fit: one must be divisible by the other: "
        "use tensor-model-parallel-size 1 or 2, or num-query-groups 1, 2, 3, 6 or 12",
    ),
    (
        "ffn_over_tp",
        4,
        layout(tp=4, ffn_hidden_size=1001),
        "ffn-hidden-size (1001) must be divisible by tensor-model-parallel-size (4): use ffn-hidden-size 1000 or 1004",
    ),
    (
        "one_activation",
        1,
        {"swiglu": True, "squared_relu": True},
        "at most one of swiglu, squared-relu can be the MLP's activation",
    ),
    (
        "one_activation",
        1,
        {"swiglu": True, "activation_function": "gelu"},
        "at most one of swiglu, activation-function gelu can be the MLP's activation: choose one",
    ),
    (
        "a_pattern_has_a_layer_for_each_kind",
        1,
        {"num_layers": 1, "mixers": ["attention", "attention"]},
        "mixers (attention attention) is a pattern of 2 layers, but num-layers is 1: use 1 kinds or fewer, or 2 layers "
        "or more",
    ),
    (
        "a_pattern_has_a_layer_for_each_kind",
        1,
        {"feed_forwards": []},
        "feed-forwards is an empty list: name at least one kind, or remove it",
    ),
    (
        "layer_options_belong_to_the_layers",
        1,
        {"layer_options": ["slope=0.1"]},
        "layer-options: slope is not an option of the parts in use (LayerNorm); they have none: remove it",
    ),
    (
        "layer_options_belong_to_the_layers",
        1,
        {"layer_options": ["slope"]},
        "layer-options (slope) must be NAME=VALUE",
    ),
    (
        "a_norm_can_store_its_weight_minus_one",
        1,
        {"normalization": "Mine", "apply_layernorm_1p": True},
        "Mine has no keyword parameter minus_one: give it one, or use normalization LayerNorm or RMSNorm",
    ),
    (
        "optimizer_options_belong_to_the_optimizer",
        1,
        {"optimizer_options": ["momentum=0.9"]},
        "optimizer-options: momentum is not an option of the parts in use (adam, linear); they have none: remove it",
    ),
    (
        "positions_reach_the_end",
        1,
        {"max_position_embeddings": 512},
        "max-position-embeddings (512) must be at least seq-length (1024) with learned positions: use "
        "max-position-embeddings 1024 or more",
    ),
    (
        "rotated_part_is_even",
        1,
        {"position_embedding_type": "rope", "kv_channels": 7},
        "(kv-channels 7 x rotary-percent 1.0 = 7) must be even and at least 2: use kv-channels 6 or 8",
    ),
    (
        "padding_holds_the_vocabulary",
        1,
        {"padded_vocab_in_softmax": True, "padded_vocab_size": 60, "vocab_size": 61},
        "padded-vocab-size (60) must be at least vocab-size (61): use padded-vocab-size 61 or more",
    ),
    # the layout
    (
        "layout_fits_the_world",
        6,
        layout(tp=2, pp=2),
        "world size (6) must be divisible by tensor-model-parallel-size x pipeline-model-parallel-size (2 x 2 = 4): "
        "start 4 or 8 processes (--nproc-per-node 4 or 8 on one machine), use tensor-model-parallel-size 1 or 3, "
        "pipeline-model-parallel-size 1 or 3",
    ),
    (
        "layout_fits_the_world",
        8,
        layout(tp=2, data_parallel_size=2),
        "(2 x 1 x 2 = 4): start 4 processes (--nproc-per-node 4 on one machine), or use data-parallel-size 4",
    ),
    (
        "sequence_over_tp",
        2,
        layout(tp=2, seq_length=1023, sequence_parallel=True),
        "seq-length (1023) must be divisible by tensor-model-parallel-size (2) with sequence-parallel: "
        "use seq-length 1022 or 1024",
    ),
    (
        "layers_are_cut_whole",
        4,
        layout(pp=4, num_layers=10),
        "num-layers (10) must be divisible by",
    ),
    (
        "layers_are_cut_whole",
        4,
        layout(pp=4, num_layers=8, account_for_loss_in_pipeline_split=True),
        "num-layers (8) + the output layer (9 in all) must be divisible by",
    ),
    (
        "layers_are_cut_whole",
        2,
        layout(pp=2, num_layers=4, pipeline_model_parallel_layout="Et*2|t*2mL"),
        "(Et*2|t*2mL) has m (multi-token prediction), which is not implemented here",
    ),
    (
        "schedule_fits_the_chunks",
        2,
        layout(pp=2, chunks=2, pipeline_schedule="1f1b", num_layers=8),
        "num-virtual-stages-per-pipeline-rank (2) needs pipeline-schedule interleaved, not 1f1b",
    ),
    (
        "schedule_fits_the_chunks",
        2,
        layout(pp=2, chunks=2, pipeline_schedule="gpipe", num_layers=8),
        "not gpipe",
    ),
    (
        "schedule_fits_the_chunks",
        2,
        layout(pp=2, pipeline_schedule="interleaved", global_batch_size=2),
        "of 2 or more (now 2 and 1): raise them, or use 1f1b",
    ),
    ("schedule_fits_the_chunks", 1, layout(chunks=2), "of 2 or more (now 1 and 2)"),
    (
        "schedule_fits_the_chunks",
        2,
        layout(pp=2, pipeline_schedule="zb_v", chunks=3, num_layers=12),
        "num-virtual-stages-per-pipeline-rank 2 (now 2 and 3): use these, or 1f1b",
    ),
    (
        "schedule_fits_the_chunks",
        2,
        layout(pp=2, pipeline_schedule="zb_h1", chunks=2, num_layers=8),
        "not zb_h1",
    ),
    (
        "own_schedule_has_a_file",
        2,
        layout(pp=2, pipeline_schedule="csv"),
        "needs pipeline-schedule-csv: give the file",
    ),
    (
        "own_schedule_has_a_file",
        2,
        layout(pp=2, pipeline_schedule="1f1b", pipeline_schedule_csv="x.csv"),
        "needs pipeline-schedule csv, not 1f1b",
    ),
    (
        "a_v_is_cut_evenly_or_by_hand",
        2,
        layout(
            pp=2, pipeline_schedule="dualpipe_v", num_layers=8, decoder_last_pipeline_num_layers=4
        ),
        "decoder-last-pipeline-num-layers (4) cannot be combined with pipeline-schedule dualpipe_v",
    ),
    (
        "groups_are_for_interleaving",
        4,
        layout(pp=4, chunks=3, microbatch_group_size_per_virtual_pipeline_stage=3),
        "microbatch-group-size-per-virtual-pipeline-stage (3) must be at least pipeline-model-parallel-size (4)",
    ),
    (
        "groups_are_for_interleaving",
        4,
        layout(pp=4, microbatch_group_size_per_virtual_pipeline_stage=8),
        "(8) needs pipeline-schedule interleaved, not 1f1b",
    ),
    (
        "backend_fits_the_device",
        1,
        {"device": "cpu", "distributed_backend": "nccl"},
        "nccl needs device cuda, not cpu",
    ),
    (
        "mps_is_one_rank_without_fp64",
        2,
        {"device": "mps"},
        "device mps needs 1 rank, not 2: start 1",
    ),
    ("mps_is_one_rank_without_fp64", 1, {"device": "mps", "fp64": True}, "device mps has no fp64"),
    # batches
    (
        "global_batch_is_whole",
        4,
        {"global_batch_size": 10, "micro_batch_size": 2},
        "global-batch-size (10) must be divisible by micro-batch-size x data parallel size (2 x 4): use "
        "global-batch-size 8 or 16, or start 1 or 5 processes (--nproc-per-node 1 or 5 on one machine)",
    ),
    (
        "evaluation_batch_is_whole",
        2,
        {"global_batch_size": 8, "eval_global_batch_size": 6, "eval_micro_batch_size": 2},
        "eval-global-batch-size (6) must be divisible by eval-micro-batch-size x data parallel size (2 x 2): "
        "use eval-global-batch-size 4 or 8, or eval-micro-batch-size 1",
    ),
    (
        "evaluation_batch_is_whole",
        1,
        {"global_batch_size": 8, "eval_micro_batch_size": 3},
        "eval-global-batch-size (8, that of training) must be divisible by eval-micro-batch-size",
    ),
    (
        "rampup_is_three_numbers",
        1,
        {"global_batch_size": 8, "rampup_batch_size": [4, 4]},
        "(4 4) must be three numbers",
    ),
    (
        "rampup_is_three_numbers",
        1,
        {"global_batch_size": 8, "rampup_batch_size": [4, 0, 9]},
        "(4 0 9) must be",
    ),
    (
        "rampup_needs_a_schedule_of_any_size",
        2,
        layout(
            pp=2, global_batch_size=8, rampup_batch_size=[4, 4, 9], pipeline_schedule_csv="x.csv"
        ),
        "rampup-batch-size (4 4 9) cannot be combined with pipeline-schedule-csv (x.csv)",
    ),
    (
        "rampup_steps_are_whole",
        2,
        {"global_batch_size": 8, "rampup_batch_size": [3, 1, 9]},
        "rampup-batch-size start (3) must be divisible by micro-batch-size x data parallel size (1 x 2): use "
        "rampup-batch-size 2 2 9",
    ),
    (
        "rampup_steps_are_whole",
        2,
        {"global_batch_size": 8, "rampup_batch_size": [4, 1, 9]},
        "increment (1) must be divisible",
    ),
    (
        "rampup_steps_are_whole",
        1,
        {"global_batch_size": 8, "rampup_batch_size": [9, 1, 9]},
        "start (9) must not exceed",
    ),
    (
        "rampup_steps_are_whole",
        1,
        {"global_batch_size": 8, "rampup_batch_size": [2, 4, 9]},
        "must reach global-batch-size (8) from 2 in whole increments of 4: use global-batch-size 6 or 10",
    ),
    ("one_length", 1, {"train_iters": None}, "the run has no length"),
    (
        "one_length",
        1,
        {"train_samples": 9},
        "train-iters (10) and train-samples (9) are both given",
    ),
    (
        "samples_fill_a_step",
        1,
        SAMPLES | {"global_batch_size": 101},
        "train-samples (100) must fill the first batch (101)",
    ),
    # data
    *BROKEN_DATA_LAWS,
    *BROKEN_OPTIM_LAWS,
    (
        "details_are_for_full",
        1,
        {"recompute_method": "block"},
        "recompute-method (block) needs recompute-granularity full, not none",
    ),
    (
        "details_are_for_full",
        1,
        {"recompute_granularity": "selective", "recompute_num_layers": 2},
        "recompute-num-layers (2) needs recompute-granularity full, not selective",
    ),
    (
        "recomputed_parts_are_known",
        1,
        {"recompute_granularity": "selective", "recompute_modules": ["mlp", "norm"]},
        "recompute-modules: norm is not a part of a layer: use core_attn, layernorm, mlp or activation",
    ),
    (
        "offloaded_parts_are_known",
        1,
        {"offload_modules": ["norm"]},
        "offload-modules: norm is not a part that can wait in host memory: use core_attn, layernorm or mlp",
    ),
    (
        "offloaded_parts_are_known",
        1,
        {"recompute_granularity": "selective", "offload_modules": ["core_attn"]},
        "offload-modules and recomputation (recompute-granularity selective) both name core_attn: remove it from one "
        "of them",
    ),
    (
        "recomputed_parts_are_known",
        1,
        {"recompute_granularity": "selective", "recompute_modules": ["moe_act"]},
        "moe_act needs mixture of experts, which is not implemented here",
    ),
    (
        "profile_ends_after_its_start",
        1,
        {"profile": True, "profile_step_start": 4, "profile_step_end": 4},
        "profile-step-end (4) must be larger than profile-step-start (4): use profile-step-end 5 or more, or "
        "profile-step-start 3 or less",
    ),
    (
        "profiled_ranks_are_there",
        2,
        {"data_parallel_size": 2, "profile": True, "profile_ranks": [0, 2]},
        "profile-ranks: 2 is not a rank of this run: use 0 to 1",
    ),
    (
        "layers_are_there_to_recompute",
        1,
        {"recompute_granularity": "full", "recompute_num_layers": 99},
        "recompute-num-layers (99) must not exceed num-layers",
    ),
    *BROKEN_PATTERN_LAWS,
    # checkpoints
    *BROKEN_RUN_LAWS,
]
