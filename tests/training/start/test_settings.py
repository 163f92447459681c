"""Settings are derived once in each process, checked all at once, and checked again with what files and machine say."""

import pytest

from megascratch.config.errors import SettingError
from megascratch.config.load import read_config
from megascratch.config.resolve import Found
from megascratch.training.start.settings import legal_settings
from tests.support.noted_calls import noted_calls
from tests.support.refused_starts import MODEL

DATA = ["--mock-data", "--vocab-size", "50"]
BYTES = ["--mock-data", "--tokenizer-type", "ByteTokenizer"]
QUICK = ["--eval-interval", "0", "--device", "cpu"]
ONCE = ["megascratch.config.resolve:derive", "megascratch.data.samples.build:open_splits"]
ONCE += ["megascratch.tokenizer.registry:load"]


def test_every_process_of_a_launch_derives_its_settings_and_opens_its_inputs_once(tmp_path):
    ranks = ["--nproc-per-node", "2"]
    found = noted_calls(tmp_path, ["pretrain", *MODEL, *BYTES, *QUICK, *ranks], ONCE)
    once = [1] * 3  # the launcher, too
    assert found == {"derive": once, "open_splits": once, "load": once}


def test_a_run_alone_and_a_resumed_one_derive_once_and_open_their_inputs_before_torch_too(tmp_path):
    run = ["--auto-resume", "--output-dir", str(tmp_path / "run")]
    for name in ("alone", "resumed"):
        (tmp_path / name).mkdir()
        found = noted_calls(tmp_path / name, ["pretrain", *MODEL, *BYTES, *QUICK, *run], ONCE)
        assert found == {"derive": [1], "open_splits": [2], "load": [2]}  # as a launcher and a rank


def settings_of(*words: str, world: int = 1):
    return legal_settings(read_config([*MODEL, *words]), world)


def test_all_that_is_wrong_is_reported_at_once():
    words = ["--lr", "fast", "--num-query-groups", "3", "--data-path", "nowhere"]
    with pytest.raises(SettingError) as caught:
        settings_of(*words)
    text = str(caught.value)
    for part in (
        "lr",
        "must be divisible by num-query-groups (3)",
        "vocabulary is unknown",
        "nowhere.idx",
    ):
        assert part in text


@pytest.mark.parametrize(
    ("words", "found", "law"),
    [
        (
            ["--tokenizer-type", "ByteTokenizer", "--fim-rate", "0.5", "--fim-prefix-id", "256"]
            + ["--fim-middle-id", "257", "--fim-suffix-id", "258"],
            Found(vocab_size=257),
            r"fim ids \(256, 257, 258\) must be ids of the vocabulary \(257 ids\): use 0 to 256",
        ),
        (
            [*DATA, "--micro-batch-size", "4"],
            Found(global_batch_size=6),
            r"global-batch-size \(6\) must be divisible by micro-batch-size x data parallel size \(4 x 1\)",
        ),
        (
            [*DATA, "--distributed-backend", "nccl"],
            Found(device="cpu"),
            "distributed-backend nccl needs device cuda, not cpu: use gloo",
        ),
    ],
    ids=["vocabulary", "batch of a checkpoint", "device"],
)
def test_what_is_found_is_judged_by_the_laws(words, found, law):
    mock = [] if "--mock-data" in words else ["--mock-data"]
    legal = settings_of(*words, *mock)
    with pytest.raises(SettingError, match=law):
        legal.resolve(found)


def test_what_is_found_becomes_part_of_the_settings():
    config = settings_of("--mock-data", "--tokenizer-type", "ByteTokenizer").resolve(
        Found(vocab_size=257, load="before", global_batch_size=12, device="cpu")
    )
    assert config.model.vocab_size == 257
    assert config.training.load == "before" and config.training.global_batch_size == 12
    assert config.training.device == "cpu" and config.parallel.distributed_backend == "gloo"
