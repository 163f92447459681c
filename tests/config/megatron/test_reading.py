"""A command line of Megatron-LM is read with its meaning, and what is not there is named."""

import pytest

from megascratch.config.errors import SettingError
from megascratch.config.fields import SETTINGS
from megascratch.config.load import load_config, read_config
from megascratch.config.megatron import rules
from megascratch.config.megatron.options import CLASSES, by_spelling, options
from megascratch.config.megatron.reading import verdict
from megascratch.config.settings import TrainingConfig

CHUNKS = "--num-layers-per-virtual-pipeline-stage"
BASE = "--num-layers 2 --hidden-size 48 --num-attention-heads 4 --use-mcore-models"


def test_every_row_has_a_class_and_every_setting_that_it_names_exists():
    assert len(by_spelling()) >= 838
    for option in options():
        assert option.kind in CLASSES
        for setting in option.becomes:
            assert setting in SETTINGS, option.name
        if option.kind == "same":
            assert option.name.replace("-", "_") in SETTINGS


@pytest.mark.parametrize(
    "flags, setting, value",
    [
        ("", "model.openai_gelu", True),
        ("--no-bias-gelu-fusion", "model.openai_gelu", False),
        ("--no-bias-gelu-fusion --openai-gelu", "model.openai_gelu", False),
        ("--no-bias-gelu-fusion --use-te-activation-func", "model.openai_gelu", True),
        ("--disable-bias-linear --use-transformer-engine-op-fuser", "model.openai_gelu", True),
        ("--fim-rate 0.5", "data.fim_rate", 0.0),
        ("--fim-data", "data.fim_rate", 0.5),
        ("--fim-data --fim-rate 0.9", "data.fim_rate", 0.9),
        ("--fim-data", "data.fim_middle_token", "<fim_middle>"),
        ("", "data.data_order", "megatron"),
        ("", "optim.lr_schedule_unit", "samples"),
        ("", "optim.lr_schedule_waits_for_overflows", False),
        ("--fp16", "optim.lr_schedule_waits_for_overflows", True),
        ("--recompute-activations", "parallel.recompute_granularity", "selective"),
        ("", "training.exit_on_missing_checkpoint", False),
        ("--exit-on-missing-checkpoint", "training.exit_on_missing_checkpoint", True),
        ("", "training.exit_zero_on_stop", True),
        ("", "training.log_interval", 100),
        ("--log-interval 7", "training.log_interval", 7),
        ("", "training.eval_interval", 0),
        ("--eval-interval 5", "training.eval_interval", 5),
        (
            f"--num-layers 8 --pipeline-model-parallel-size 2 {CHUNKS} 2",
            "parallel.num_virtual_stages_per_pipeline_rank",
            2,
        ),
        (
            f"--num-layers 7 --account-for-loss-in-pipeline-split {CHUNKS} 2",
            "parallel.num_virtual_stages_per_pipeline_rank",
            4,
        ),
        ("--swiglu", "model.openai_gelu", False),
        ("--disable-bias-linear", "model.openai_gelu", False),
        ("--disable-bias-linear", "model.add_bias_linear", False),
        ("--disable-bias-linear", "model.norm_bias", True),
        ("--disable-bias-linear --normalization RMSNorm", "model.norm_bias", None),
        ("--swiglu", "model.ffn_hidden_size", 128),
        ("--swiglu --ffn-hidden-size 96", "model.ffn_hidden_size", 96),
        ("--num-query-groups 2", "model.num_query_groups", None),
        ("--num-query-groups 2 --group-query-attention", "model.num_query_groups", 2),
        ("--group-query-attention", "model.num_query_groups", 1),
        ("--split '99,1,0'", "data.split", "99,1,0"),
        ("", "training.calculate_per_token_loss", False),
        ("--calculate-per-token-loss", "training.calculate_per_token_loss", True),
        ("--lr 1e-3 --lr=2e-3", "optim.lr", 2e-3),
        ("--window-size 127,0", "model.sliding_window", 128),
        ("--window-size (127,0)", "model.sliding_window", 128),
        ("--window-size 127,-1", "model.sliding_window", 128),
        ("--window-size -1,0", "model.sliding_window", None),
        ("--window-size 3,0 --window-attn-skip-freq 2", "model.window_attn_skip_freq", [2]),
        ("--window-attn-skip-freq 2", "model.window_attn_skip_freq", None),
        (
            "--num-layers 8 --window-size 3,0 --window-attn-skip-freq ([1]*3+[0])*2",
            "model.window_attn_skip_freq",
            [1, 1, 1, 0, 1, 1, 1, 0],
        ),
        ("--no-rope-freq 4", "model.no_rope_freq", [4]),
        ("--no-rope-freq [0]+[1]*1", "model.no_rope_freq", [0, 1]),
        ("--use-rope-scaling", "model.rope_scaling_type", "llama3"),
        ("--use-rope-scaling", "model.rope_scaling_factor", 8.0),
        ("--use-rope-scaling", "model.rope_original_max_position_embeddings", 8192),
        (
            "--use-rope-scaling --rope-scaling-factor 32",
            "model.rope_scaling_factor",
            32.0,
        ),
        ("--rope-scaling-factor 32", "model.rope_scaling_factor", None),
        ("--quick-geglu", "model.activation_function", "quick_geglu"),
        ("--quick-geglu", "model.ffn_hidden_size", 192),
        ("--quick-geglu", "model.openai_gelu", False),
        ("--quick-geglu --glu-linear-offset 1.0", "model.glu_linear_offset", 1.0),
        ("--softmax-type learnable", "model.softmax_type", "learnable"),
        ("--qk-layernorm", "model.qk_layernorm_over", "head"),
        ("--context-parallel-size 2", "parallel.context_parallel_size", 2),
        ("--cp-comm-type a2a", "parallel.cp_comm_type", "a2a"),
        ("--cp-comm-type p2p p2p", "parallel.cp_comm_type", "p2p"),
        (
            "--cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 2 4",
            "parallel.hierarchical_context_parallel_sizes",
            [2, 4],
        ),
        ("--seed -1", None, "seed (-1)"),
    ],
)
def test_a_flag_means_what_it_means_there(flags, setting, value):
    config, _, problems, _ = read_config([*BASE.split(), *flags.split()])
    if setting is None:
        return
    assert problems == []
    section, name = setting.split(".")
    assert getattr(getattr(config, section), name) == value


@pytest.mark.parametrize(
    "flags, reason",
    [
        ("--no-position-embedding", "contradicts the table of learned positions"),
        (
            "--recompute-activations --recompute-granularity full",
            "--recompute-activations is --recompute-granularity selective, but full is given",
        ),
        ("--disable-bias-linear --add-bias-linear", "--disable-bias-linear and --add-bias-linear"),
        (
            "--encoder-seq-length 8 --seq-length 16",
            "--encoder-seq-length 8 and --seq-length 16 contradict each other",
        ),
        (
            "--use-rotary-position-embeddings --position-embedding-type none",
            "--use-rotary-position-embeddings and --position-embedding-type none contradict",
        ),
        (
            f"{CHUNKS} 2 --num-virtual-stages-per-pipeline-rank 2",
            "both say the virtual stages: keep one",
        ),
        (
            f"--num-layers 8 --pipeline-model-parallel-size 2 {CHUNKS} 3",
            "(3) must divide the 4 layers of a stage: use 1, 2 or 4",
        ),
        (f"{CHUNKS} 1 --decoder-first-pipeline-num-layers 1", "give --num-virtual-stages-per"),
        ("--swiglu true", "--swiglu does not accept a value (given: true)"),
        ("--lr", "--lr needs a value"),
        ("--window-size 127", "--window-size 127 must be the tokens before a token and 0"),
        ("--window-size 127,127", "must be the tokens before a token and 0: --window-size 127,0"),
        (
            "--no-rope-freq [1]*x",
            "--no-rope-freq [1]*x is not a pattern of layers: give one number",
        ),
        ("--no-rope-freq [1]*999999999999", "is not a pattern of layers"),
        ("--cp-comm-type p2p a2a", "has p2p and a2a for different layers, and all have one here"),
        ("--rampup-batch-size 2 2", "--rampup-batch-size needs 3 values, not 2"),
        ("--num-layers 2 4", "accepts one value: unrecognized arguments: 4"),
    ],
)
def test_what_contradicts_itself_or_is_no_command_line_there_is_refused_once(flags, reason):
    words = [*BASE.split(), *flags.split()]
    assert [reason in problem for problem in read_config(words).problems] == [True]
    assert not verdict(words).whole


@pytest.mark.parametrize(
    "flags",
    [
        "--no-position-embedding --use-rotary-position-embeddings",
        "--no-position-embedding --position-embedding-type none",
        "--recompute-activations --recompute-granularity selective",
        "--seq-length 16 --encoder-seq-length 16",
        "--disable-bias-linear --no-add-bias-linear",
        f"--num-layers 8 --pipeline-model-parallel-size 2 {CHUNKS} 2",
        "--lr -1e-5 --lr 1e-5",
    ],
)
def test_what_says_the_same_twice_is_no_contradiction(flags):
    words = [*BASE.split(), *flags.split()]
    assert read_config(words).problems == [] and verdict(words).whole


@pytest.mark.parametrize(
    "flags, feature",
    [
        ("--position-embedding-type yarn", "scaling of rotary frequencies"),
        ("--optimizer muon", "other optimizers than Adam"),
        ("--tokenizer-type SFTTokenizer", "supervised fine-tuning"),
        ("--recompute-modules core_attn moe_act", "mixture of experts"),
    ],
)
def test_a_value_that_only_megatron_has_is_a_missing_feature_by_name(flags, feature):
    words = [*BASE.split(), *flags.split()]
    assert verdict(words).missing == {feature: [flags]}
    assert read_config(words).problems == [f"{feature}: not there yet (needed by {flags})"]


@pytest.mark.parametrize(
    "flags, notice",
    [
        ("--num-query-groups 2", "--num-query-groups 2: no effect without --group-query-attention"),
        ("--fim-rate 0.5", "--fim-rate 0.5: no effect without --fim-data"),
        ("--openai-gelu", "--openai-gelu: no effect in Megatron-LM"),
        ("--lr 1 --lr 2", "--lr 2 replaces --lr 1: the last one is used"),
        ("--transformer-impl local --no-rope-fusion", "3 flags have no effect here: --use-mcore"),
        ("--vocab-size 100", "rows of padding of the vocabulary take no part in the softmax"),
        ("", "Megatron-LM needs flags that are not given, their defaults here are used: --seq-l"),
    ],
)
def test_what_differs_is_told_in_one_line(flags, notice):
    told = read_config([*BASE.split(), *flags.split()]).origins.notices
    assert [line for line in told if line.startswith(notice)] != []


@pytest.mark.parametrize(
    "vocabulary",
    [
        "--vocab-size 512 --tensor-model-parallel-size 2",
        "--vocab-size 61 --padded-vocab-in-softmax",
    ],
)
def test_nothing_is_told_where_nothing_differs(vocabulary):
    """A whole command line: every needed flag, and a vocabulary without padding, or with padding that is trained."""
    whole = f"{BASE} --seq-length 16 --micro-batch-size 1 --lr 1e-3 --group-query-attention"
    sizes = f"--num-query-groups 2 {vocabulary}"
    told = read_config([*whole.split(), *sizes.split()]).origins.notices
    assert [line.split(":")[0] for line in told] == [
        "the flags are read as Megatron-LM reads them, because of --use-mcore-models; --flags-of "
        "megascratch forbids it",
        "1 flag has no effect here",
    ]


@pytest.mark.parametrize("is_installed", [True, False])
def test_weights_and_biases_is_used_where_it_is_installed(monkeypatch, is_installed):
    monkeypatch.setattr(rules.importlib.util, "find_spec", lambda name: is_installed or None)
    config = read_config([*BASE.split(), "--wandb-project", "p", "--wandb-exp-name", "n"]).config
    found = (config.training.log_to, config.training.log_project, config.training.log_run)
    default = TrainingConfig()
    plain = (default.log_to, default.log_project, default.log_run)
    assert found == ((["tensorboard", "wandb"], "p", "n") if is_installed else plain)


def test_an_ordinary_command_line_keeps_the_defaults_of_this_toolkit():
    """Also with a flag that only Megatron-LM knows, when there is a config file or --flags-of megascratch."""
    assert not load_config(["--hidden-size", "48"])[0].model.openai_gelu
    for words in (["--config", "llama-10m"], ["--flags-of", "megascratch"]):
        problems = read_config([*words, "--disable-bias-linear"]).problems
        assert problems == [
            "unknown flag --disable-bias-linear - did you mean --no-add-bias-linear?"
        ]


@pytest.mark.parametrize(
    "words, is_megatrons",
    [
        ("--lr 1", False),
        ("--use-mcore-models", True),
        ("--flags-of megatron", True),
        ("--flags-of=megatron --lr 1", True),
        ("--flags-of megascratch --flags-of megatron", True),
        ("--flags-of megatron --flags-of=megascratch", False),
    ],
)
def test_whose_flags_they_are_is_told_by_a_flag_or_by_name(words, is_megatrons):
    loaded = read_config(words.split())
    assert loaded.problems == []
    assert (loaded.config.data.data_order == "megatron") is is_megatrons
    assert any("as Megatron-LM reads" in line for line in loaded.origins.notices) is is_megatrons


@pytest.mark.parametrize(
    "words, wrong",
    [("--flags-of", ""), ("--flags-of --lr 1", ", not --lr"), ("--flags-of=x", ", not x")],
)
def test_only_two_tools_have_flags(words, wrong):
    with pytest.raises(SettingError) as refused:
        read_config(words.split())
    assert str(refused.value) == f"--flags-of must be megatron or megascratch{wrong}"


def test_a_missing_feature_is_named_with_the_flags_that_need_it():
    words = [*BASE.split(), *"--num-experts 8 --moe-router-topk 2 --swiglo".split()]
    said = verdict(words)
    assert not said.whole
    assert said.missing == {"mixture of experts": ["--num-experts 8", "--moe-router-topk 2"]}
    assert said.unknown == ["unknown flag --swiglo - did you mean --swiglu?"]
    assert (
        "mixture of experts: not there yet (needed by --num-experts 8, --moe-router-topk 2)"
        in read_config(words).problems
    )
