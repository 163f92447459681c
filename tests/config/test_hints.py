"""Hints behind unknown flags and YAML keys: what a name of another tool means here, and never something else."""

import re
from pathlib import Path

import pytest

from megascratch.config.errors import UserError
from megascratch.config.fields import SECTIONS, SETTINGS
from megascratch.config.flags import OPTIONS, read_flags
from megascratch.config.hints import hint, meant, nearest, plain_name, row_of
from megascratch.config.load import load_config
from megascratch.config.megatron.options import option_of
from megascratch.config.synonyms import PREFIXES, SYNONYMS, WHOLE

KNOWN = [*SETTINGS, *OPTIONS]
ROOT = Path(__file__).resolve().parents[2]
MEGATRON = (Path(__file__).parents[1] / "support" / "megatron_options.txt").read_text().split()
"""Every option of Megatron-LM's training arguments (August 2026)."""

# Megatron-LM's options that are another setting here, by hand from the help texts of both
MEANS = {
    "batch-size": "--micro-batch-size",
    "checkpoint-activations": "--recompute-granularity full",
    "data-args-path": "--data-path",
    "dataloader-type": "--data-order",
    "disable-bias-linear": "--no-add-bias-linear",
    "distributed-timeout-seconds-after-init": "--distributed-timeout-minutes",
    "encoder-num-layers": "--num-layers",
    "encoder-seq-length": "--seq-length",
    "fim-data": "--fim-rate",
    "fsdp-db-use-persist-buf-on-alloc-fail": "--use-distributed-optimizer",
    "fsdp-double-buffer": "--use-distributed-optimizer",
    "fsdp-manual-registration": "--use-distributed-optimizer",
    "group-query-attention": "--num-query-groups",
    "model-parallel-size": "--tensor-model-parallel-size",
    "num-layers-per-virtual-pipeline-stage": "--num-virtual-stages-per-pipeline-rank",
    "per-split-data-args-path": "--train-data-path",
    "phase-transition-iterations": "--data-stages",
    "quick-geglu": "--activation-function quick_geglu",
    "recompute-activations": "--recompute-granularity selective",
    "use-megatron-fsdp": "--use-distributed-optimizer",
    "use-rope-scaling": "--rope-scaling-type llama3",
    "use-rotary-position-embeddings": "--position-embedding-type rope",
    "use-torch-fsdp2": "--use-distributed-optimizer",
    "wandb-entity": "--log-to wandb",
    "wandb-exp-name": "--log-run",
    "wandb-project": "--log-project",
    "wandb-save-dir": "--log-to wandb",
    "warmup": "--lr-warmup-iters",
    "yaml-cfg": "--config",
}


def told(option: str) -> str:
    """What is said behind an option of Megatron-LM; '' if it is a flag here."""
    name = option.replace("-", "_")
    if name in KNOWN or name.removeprefix("no_") in KNOWN:
        return ""
    return hint(f"--{option}", KNOWN, as_flag=True)


def test_no_option_of_megatron_gets_a_setting_that_is_not_what_it_means():
    found = {}
    for option in MEGATRON:
        proposed = re.match(r" - did you mean (.*)\?", told(option))
        if proposed and not option.startswith("megatron-fsdp-"):
            found[option] = proposed[1]
    assert found == MEANS


def test_a_name_of_megatron_is_in_one_table_unless_a_setting_is_written_in_its_place():
    explained = [name for name, row in {**SYNONYMS, **WHOLE}.items() if not row.setting]
    assert [name for name in explained if option_of(name) is not None] == []


def test_no_option_of_megatron_is_taken_for_a_misspelt_setting():
    for option in MEGATRON:
        name = option.replace("-", "_")
        if name in KNOWN or name.removeprefix("no_") in KNOWN or row_of(name) is not None:
            continue
        assert meant(name, KNOWN) == "", option


def test_every_row_names_a_setting_that_exists_or_says_why_there_is_none():
    for rows in (SYNONYMS, PREFIXES, WHOLE):
        for name, row in rows.items():
            assert row.setting in KNOWN if row.setting else row.words, name
            assert row.value == "" or row.setting, name
            assert name not in KNOWN and name not in SECTIONS, f"{name} is a setting itself"
            assert name == plain_name(name), name
            if row.value and SETTINGS[row.setting].choices is not None:
                assert row.value in SETTINGS[row.setting].choices, name
            if row.setting in SETTINGS and SETTINGS[row.setting].kind is bool:
                assert row.value in ("true", "false", ""), name


FLAGS = [
    ("--n-layer", " - did you mean --num-layers?"),
    ("--n_embd", " - did you mean --hidden-size?"),
    ("--disable-bias-linear", " - did you mean --no-add-bias-linear?"),
    ("--group-query-attention", " - did you mean --num-query-groups? (to give it is enough)"),
    ("--num-workers", ": not needed, remove it: token files have one reader"),
    ("--num-experts", ": mixture of experts: not there yet (docs/limits.md)"),
    ("--moe-router-topk", ": mixture of experts: not there yet (docs/limits.md)"),
    ("--fp8-param-gather", ": not a setting here: FP8 and FP4 are not there yet"),
    ("--attention-backend", ": not needed, remove it: kernels are chosen by what the device has"),
    ("--use-flash-attn", ": not needed, remove it: kernels are chosen by what the device has"),
    (
        "--no-masked-softmax-fusion",
        ": not needed, remove it: kernels are chosen by what the device has",
    ),
    ("--manual-gc", ": not needed, remove it: memory is managed by the toolkit"),
    (
        "--no-position-embedding",
        ": not needed, remove it: positions are those of --position-embedding-type",
    ),
    ("--use-mcore-models", ": not needed, remove it: there is one implementation"),
    ("--ckpt-format", ": not a setting here: checkpoints are written in this toolkit's one format"),
    ("--model.num-layers", " - did you mean --num-layers?"),
    ("--model.dtype", " - did you mean --bf16? (fp16 is float16"),
    ("-lr", " - did you mean --lr?"),
    ("—lr", " - did you mean --lr?"),
    ("--lr:1", " - did you mean --lr?"),
    ("--LR", " - did you mean --lr?"),
    ("--numlayers", " - did you mean --num-layers?"),
    ("--num-layer", " - did you mean --num-layers?"),
    ("--hidden-sise", " - did you mean --hidden-size?"),
    ("--pipeline-model-parallel", ""),  # -size and -layout are as near
    ("--warmup-samples", " - did you mean --lr-warmup-samples?"),
    ("--tensor-parallel", " - did you mean --tensor-model-parallel-size?"),
    ("--xyzzy", ""),
    ("--num-foo", ""),
    ("--train-steps-per-epoch", ""),
]

KEYS = [
    ("n_layer", " - did you mean num_layers?"),
    ("n_head", " - did you mean num_attention_heads?"),
    ("n_embd", " - did you mean hidden_size?"),
    ("block_size", " - did you mean seq_length?"),
    ("max_iters", " - did you mean train_iters?"),
    ("learning_rate", " - did you mean lr?"),
    ("dropout", " - did you mean hidden_dropout? (attention_dropout is a setting of its own)"),
    ("dtype", " - did you mean bf16: true? (fp16 is float16, and without either"),
    ("tp", " - did you mean tensor_model_parallel_size?"),
    ("pp", " - did you mean pipeline_model_parallel_size?"),
    ("gradient_accumulation_steps", " - did you mean global_batch_size? (it is micro_batch_size x"),
    ("intermediate_size", " - did you mean ffn_hidden_size?"),
    ("num_key_value_heads", " - did you mean num_query_groups?"),
    ("num_hidden_layers", " - did you mean num_layers?"),
    ("rope_theta", " - did you mean rotary_base?"),
    ("tie_word_embeddings", " - did you mean untie_embeddings_and_output_weights? (it is the opp"),
    ("hidden_act", " - did you mean swiglu: true? (that is silu"),
    ("disable_bias_linear", " - did you mean add_bias_linear: false?"),
    ("training.steps", " - did you mean train_iters?"),
    ("parallelism.context_parallel_degree", " - did you mean context_parallel_size?"),
    ("wandb", " - did you mean log_to: wandb?"),
    ("wandb_project", " - did you mean log_project? (with log_to wandb)"),
    ("mlflow_uri", ": not there: log_to has wandb, trackio and otel"),
    ("use_rope", " - did you mean position_embedding_type: rope?"),
    ("zero_stage", " - did you mean use_distributed_optimizer: true? (it is ZeRO-1"),
    ("num_layer", " - did you mean num_layers?"),
    ("xyzzy", ""),
]


@pytest.mark.parametrize(("word", "said"), FLAGS)
def test_a_flag_of_another_tool_is_explained(word, said):
    (problem,) = [line for line in read_flags([word, "1"]).problems if line.startswith("unknown")]
    found = problem.removeprefix("unknown flag ").removeprefix(word.replace("_", "-"))
    assert found.startswith(said) and (said or not found)


@pytest.mark.parametrize(("word", "said"), KEYS)
def test_a_key_of_another_tool_is_explained(tmp_path, word, said):
    file = tmp_path / "c.yaml"
    file.write_text(f"{word}: 1")
    with pytest.raises(UserError) as error:
        load_config(["--config", str(file)])
    found = str(error.value).removeprefix(f"{file}:1: unknown setting {word}")
    assert found.startswith(said) and (said or not found)


def test_the_table_of_the_documentation_says_the_same():
    """Each name of nanoGPT and Hugging Face means a setting of one of the rows that it is in."""
    ours: dict[str, set[str]] = {}
    for line in (ROOT / "docs" / "coming-from.md").read_text().splitlines():
        cells = line.strip("|").split("|")
        if not line.startswith("| `") or len(cells) != 3:
            continue
        here = {word.split(":")[0] for word in re.findall(r"`([^`]+)`", cells[0])}
        for word in re.findall(r"`(\w+)", cells[1] + cells[2]):
            ours.setdefault(word, set()).update(here)
    assert len(ours) > 50
    for word in ours.keys() - SETTINGS.keys() - {"run_clm", "lr_scheduler_kwargs"}:
        assert meant(word, SETTINGS) in ours[word], word


def misspelt(name: str) -> list[str]:
    """A name with a letter too few, two letters exchanged, a letter too many, and without its first separator."""
    at = max(len(name) - 3, 1)
    return [
        name[:at] + name[at + 1 :],
        name[: at - 1] + name[at] + name[at - 1] + name[at + 1 :],
        name[:at] + "x" + name[at:],
        name.replace("_", "", 1),
    ]


def test_a_misspelt_setting_gets_itself_or_nothing():
    right = 0
    words = [(word, name) for name in SETTINGS if len(name) > 5 for word in misspelt(name)]
    for word, name in words:
        found = meant(word, KNOWN)
        assert found in (name, "") or row_of(word) is not None or word in KNOWN, word
        right += found == name
    assert right > 0.9 * len(words), right / len(words)


def test_a_hint_stops_laws_about_the_setting_that_was_meant():
    assert "num_layers" in read_flags(["--n-layer", "x"]).unread
    assert read_flags(["--moe-router-topk", "2"]).unread == set()


@pytest.mark.parametrize(
    ("word", "known", "said"),
    [
        ("zb-h1", ["gpipe", "zb_h1", "zb_h2"], " - did you mean zb_h1?"),
        ("1F1B", ["gpipe", "1f1b"], " - did you mean 1f1b?"),
        ("zb_h3", ["zb_h1", "zb_h2"], ""),  # as near to both
        ("circular", ["gpipe", "1f1b"], ""),
    ],
)
def test_the_nearest_of_other_names(word, known, said):
    assert nearest(word, known) == said
