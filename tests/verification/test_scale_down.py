"""A config that is scaled down is of the same kind, is legal on the ranks that are there, and says what it changed."""

from itertools import product

import pytest

from megascratch.config.errors import SettingError
from megascratch.config.fields import flat
from megascratch.config.laws import validate
from megascratch.config.load import Loaded, read_config
from megascratch.config.presets import preset_names
from megascratch.config.registry import BUILT_IN
from megascratch.verification.scale_down import scaled_down
from tests.support.corpora import write

WORLDS = (1, 2, 3, 8)
KEPT = (
    "normalization",
    "position_embedding_type",
    "swiglu",
    "openai_gelu",
    "add_bias_linear",
    "untie_embeddings_and_output_weights",
    "hidden_dropout",
    "lr",
    "lr_decay_style",
    "bf16",
    "seed",
)
CUTS = {
    "even": {},
    "first": {"decoder_first_pipeline_num_layers": 6, "num_layers": 48},
    "text": {"pipeline_model_parallel_layout": "E|t*20|t*20|L", "num_layers": 40},
    "ends": {
        "num_layers": 46,
        "account_for_embedding_in_pipeline_split": True,
        "account_for_loss_in_pipeline_split": True,
    },
}
MOCK = "--mock-data --train-iters 1000 --vocab-size 50257".split()


def small(*words: str, world: int = 2) -> Loaded:
    return scaled_down(read_config(words), world)


@pytest.mark.parametrize("preset", preset_names())
def test_every_preset_is_legal_on_any_ranks_and_of_the_same_kind(preset):
    whole = flat(read_config(["--config", preset]).config)
    for world in WORLDS:
        loaded = small("--config", preset, world=world)
        found = flat(loaded.config)
        validate(found, world)
        assert {name: found[name] for name in KEPT} == {name: whole[name] for name in KEPT}
        assert found["hidden_size"] <= 128 and found["num_layers"] <= 8
        assert loaded == small("--config", preset, world=world)


@pytest.mark.parametrize(("cut", "schedule"), list(product(CUTS, BUILT_IN["schedule"])))
def test_every_cut_and_schedule_has_a_small_one(cut, schedule):
    settings = {"num_layers": 48, **CUTS[cut], "pipeline_model_parallel_size": 4}
    words = [*MOCK, "--global-batch-size", "32"]
    if schedule != "csv":
        words += ["--pipeline-schedule", schedule]
    if schedule == "interleaved":
        words += ["--num-virtual-stages-per-pipeline-rank", "2"]
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        words += [flag] if value is True else [flag, str(value)]
    try:
        small(*words, world=4)
    except SettingError:
        return  # a cut that this schedule does not have
    for world in (1, 2, 3):
        validate(flat(small(*words, world=world).config), world)


@pytest.mark.parametrize("world", [1, 3, 4])
def test_patterns_of_layers_become_as_short_as_the_model(world):
    """Of 24 layers in 6 stages every third sees all, and the last does not rotate."""
    rope = "--position-embedding-type rope --num-layers 24 --pipeline-model-parallel-size 6"
    windows = f"--sliding-window 128 --window-attn-skip-freq {'1 1 0 ' * 8}"
    unrotated = f"--no-rope-freq {'0 0 0 1 ' * 6}"
    words = [*MOCK, *rope.split(), *windows.split(), *unrotated.split()]
    found = flat(small(*words, "--global-batch-size", "32", world=world).config)
    layers = found["num_layers"]
    assert layers < 24
    assert found["window_attn_skip_freq"] == ([1, 1, 0] * 8)[:layers]
    assert found["no_rope_freq"] == ([0, 0, 0, 1] * 6)[:layers]
    assert found["sliding_window"] < found["seq_length"]
    validate(found, world)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
@pytest.mark.parametrize(
    "kind", ["p2p", "all_gather", "a2a", "a2a+p2p --hierarchical-context-parallel-sizes 2 2"]
)
def test_sequences_stay_shared_as_long_as_there_are_ranks(kind, world):
    flags = f"--tensor-model-parallel-size 2 --context-parallel-size 4 --cp-comm-type {kind}"
    shape = "--num-attention-heads 16 --hidden-size 1024 --sequence-parallel --global-batch-size 8"
    words = [*MOCK, *flags.split(), *shape.split()]
    found = flat(small(*words, world=world).config)
    validate(found, world)
    assert found["tensor_model_parallel_size"] == min(2, world)
    assert found["context_parallel_size"] == max(1, world // 2)


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        ("--num-attention-heads 12 --tensor-model-parallel-size 8", r"heads \(12\) .* \(8\)"),
        ("--num-layers 10 --pipeline-model-parallel-size 4", r"num-layers \(10\) must be divis"),
        ("--lr 1e-4 --min-lr 1e-3", "min-lr"),
        ("--hiden-size 3", "unknown flag --hiden-size"),
        ("--data-path here", "the data comes from data-path and mock-data"),
        ("--data-path here --tokenizer-model no/where", "the data comes from data-path and mock"),
    ],
)
def test_what_is_wrong_at_full_size_is_refused(flags, complaint):
    with pytest.raises(SettingError, match=complaint):
        small(*MOCK, *flags.split())


def test_the_run_is_short_and_everything_happens_in_it():
    ramp = "--rampup-batch-size 32 32 100000 --global-batch-size 256 --micro-batch-size 4"
    lengths = (
        "--lr-warmup-iters 100 --lr-decay-iters 900 --lr-decay-style WSD --lr-wsd-decay-iters 50"
    )
    often = "--eval-interval 100 --save-interval 500 --keep-best-n-checkpoints 2"
    found = flat(small(*MOCK, *ramp.split(), *lengths.split(), *often.split(), world=1).config)
    wanted = {
        "train_iters": 3,
        "lr_warmup_iters": 1,
        "lr_decay_iters": 3,
        "lr_wsd_decay_iters": 1,
        "rampup_batch_size": [2, 2, 2],
        "global_batch_size": 4,
        "eval_interval": 2,
        "save_interval": 2,
        "log_interval": 1,
    }
    assert {name: found[name] for name in wanted} == wanted


def test_a_step_in_fp16_does_not_overflow_by_its_scale_alone():
    assert small(*MOCK, "--fp16").config.optim.initial_loss_scale == 4096
    assert small(*MOCK, "--fp16", "--initial-loss-scale", "8").config.optim.initial_loss_scale == 8


def test_a_schedule_of_batches_has_a_size_for_each_step():
    schedule = ["--step-batch-size-schedule", "0:64,1B:64,2B:32,4B:512"]
    training = small(*MOCK, *schedule, "--micro-batch-size", "4", world=2).config.training
    assert training.step_batch_size_schedule == "0s:8 8s:4 12s:12"


def test_lengths_in_samples_are_of_small_batches():
    words = "--mock-data --vocab-size 50 --train-samples 1000000 --lr-warmup-samples 5000"
    batches = "--step-batch-size-schedule 0:64,1B:512 --eval-global-batch-size 512"
    config = small(*words.split(), *batches.split(), world=2).config
    assert config.training.train_samples == 12
    assert config.training.eval_global_batch_size == 4
    assert config.optim.lr_warmup_samples == 4


def test_fewer_steps_than_three_stay():
    assert small(*MOCK, "--train-iters", "2").config.training.train_iters == 2


def test_only_its_own_folder_is_read_and_written(tmp_path):
    run = str(tmp_path / "run")
    outside = f"--load {tmp_path}/old --save {tmp_path}/elsewhere --finetune --tensorboard-dir t"
    training = small(*MOCK, "--output-dir", run, *outside.split()).config.training
    assert (training.load, training.save, training.tensorboard_dir) == (None, None, None)
    assert not training.finetune
    inside = small(*MOCK, "--output-dir", run, "--save", f"{run}/mine").config.training
    assert inside.save == f"{run}/mine"


def test_text_is_synthetic_only_where_files_are_missing(tmp_path):
    here = write(tmp_path / "corpus", [[1, 2, 3, 4]] * 64)
    words = ["--train-iters", "9", "--vocab-size", "300", "--data-path"]
    real = small(*words, str(here))
    assert real.config.data.data_path == [str(here)] and real.config.model.vocab_size == 300
    for missing in ("nowhere", f"0.5 {here} 0.5 nowhere"):
        data = small(*words, *missing.split()).config.data
        assert (data.data_path, data.mock_data) == (None, True)
    model = small(*words, str(here), "--tokenizer-model", "no/where")
    assert model.config.data.mock_data and model.config.model.vocab_size < 100


def test_documents_without_their_tokenizer_still_end():
    words = ["--train-iters", "9", "--tokenizer-model", "no/where", "--reset-position-ids"]
    data = small(*words, "--data-path", "no").config.data
    assert (data.tokenizer_type, data.tokenizer_model) == ("NullTokenizer", None)


def test_what_was_changed_is_told_and_is_the_origin_of_the_value():
    loaded = small("--config", "gpt3-175b", world=2)
    assert loaded.origins.places["num_layers"] == "scale-down, was 96"
    assert "lr" not in loaded.origins.places or "scale" not in loaded.origins.places["lr"]
    (line,) = [line for line in loaded.origins.notices if ", parallel: " in line]
    assert line.startswith("scaled down for 2 ranks, parallel: tensor-model-parallel-size 8 -> 2, ")
