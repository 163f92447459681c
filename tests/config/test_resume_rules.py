"""What may change on resume: every setting has a rule, and each rule does what it says."""

import pytest

from megascratch.config.fields import SETTINGS, flat
from megascratch.config.resolve import derive
from megascratch.config.resume_effects import Side
from megascratch.config.resume_rules import (
    CAN_BE_FORCED,
    compare_configs,
    rules,
)
from megascratch.config.settings import Config

GOOD = {"mock_data": True, "vocab_size": 100, "train_iters": 10}
FILES = {"mock_data": False, "data_path": ["0.3", "a", "0.7", "b"]}
TRAINED_PADDING = {"padded_vocab_in_softmax": True, "padded_vocab_size": 128}
MEGATRON = {"data_order": "megatron"}
A = {".bin": {"bytes": 10, "sha256": "aa"}, ".idx": {"bytes": 7, "sha256": "ab"}}
B = {".bin": {"bytes": 12, "sha256": "ba"}, ".idx": {"bytes": 7, "sha256": "bb"}}
REMOTE_A = {".bin": {"bytes": 10, "version": "v1"}, ".idx": {"bytes": 7, "version": "v2"}}


def side(files=None, tokenizer=None, **values) -> Side:
    return Side(derive(flat(Config()) | GOOD | values, 1), files or {}, tokenizer)


def verdict(before: dict, now: dict, consumed: int = 100, forced=(), same=None):
    return compare_configs(
        side(**(same or {}) | before), side(**(same or {}) | now), consumed, forced
    )


def test_every_setting_says_what_a_resume_does():
    assert [name for name, setting in SETTINGS.items() if setting.on_resume is None] == []


def test_the_printed_table_has_every_setting_and_every_kind():
    lines = rules().splitlines()
    assert sorted(" ".join(line for line in lines if line.startswith(" " * 6)).split()) == sorted(
        SETTINGS
    )
    assert [line.split(":")[0] for line in lines if line[0] != " "][:4] == [
        "free",
        "notice",
        "refused",
        "fixed",
    ]


@pytest.mark.parametrize(
    ("before", "now", "kind", "told"),
    [
        ({}, {"overlap_grad_reduce": False, "save": "x", "sequence_parallel": True}, "free", ""),
        (
            {},
            {"lr": 1.0},
            "notice",
            "lr was 0.0003 and is now 1.0: the weights are updated differently",
        ),
        (
            {},
            {"train_iters": 20, "lr_decay_iters": 10},
            "notice",
            "train-iters was 10 and is now 20",
        ),
        (
            MEGATRON,
            MEGATRON | {"train_iters": 20, "lr_decay_iters": 10},
            "refused",
            "train-iters was 10",
        ),
        (
            {},
            {"global_batch_size": 4},
            "notice",
            "global-batch-size was 1 and is now 4: the number of samples",
        ),
        (
            MEGATRON,
            MEGATRON | {"global_batch_size": 4},
            "refused",
            "global-batch-size was 1 and is now 4: the order",
        ),
        ({}, {"eval_iters": 3}, "free", ""),
        (MEGATRON, MEGATRON | {"eval_iters": 3}, "notice", "validation reads different samples"),
        (
            {},
            {"seed": 5},
            "refused",
            "seed was 1234 and is now 5: the order of the samples changes",
        ),
        ({}, {"packing": "best-fit"}, "refused", "some would be read twice, some never"),
        (FILES, FILES | {"split": "9,1,0"}, "refused", "split was 969,30,1 and is now 9,1,0"),
        (
            FILES,
            FILES | {"data_path": ["0.3", "a", "0.7", "c"]},
            "refused",
            "data-path was 0.3 a 0.7 b and is now 0.3",
        ),
        (
            {},
            {"eod_mask_loss": True},
            "refused",
            "eod-mask-loss was False and is now True: the model reads different",
        ),
        ({}, {"rotary_base": 5e5}, "refused", "the same weights compute a different function"),
        ({}, {"num_layers": 13}, "fixed", "num-layers was 12 and is now 13"),
        ({}, {"vocab_size": 200}, "fixed", "vocab-size was 100 and is now 200"),
        (
            {},
            {"max_position_embeddings": 4096},
            "fixed",
            "max-position-embeddings was 1024 and is now 4096",
        ),
        (
            {"position_embedding_type": "rope"},
            {"position_embedding_type": "rope", "max_position_embeddings": 4096},
            "free",
            "",
        ),
        (TRAINED_PADDING, TRAINED_PADDING | {"padded_vocab_size": 256}, "fixed", "size was 128"),
        (
            {"padded_vocab_size": 128},
            {"padded_vocab_size": 256},
            "free",
            "",
        ),
    ],
)
def test_a_change_is_free_noticed_refused_or_never_possible(before, now, kind, told):
    notices, refusals = verdict(before, now)
    (found,) = {"free": [told], "notice": notices}.get(kind, refusals)
    assert told in found and (kind == "fixed") == ("cannot be forced" in found)
    assert len(notices) == (kind == "notice") and len(refusals) == (kind in ("refused", "fixed"))


def test_a_refused_change_can_be_forced_by_its_own_name_alone():
    now = {"seed": 5, "packing": "best-fit", "num_layers": 13}
    notices, refusals = verdict({}, now, forced=["seed", "num_layers"])
    assert [line.split()[:2] for line in notices] == [["forced:", "seed"]]
    assert "num-layers" in refusals[0] and "start a new run" in refusals[0]
    assert "packing" in refusals[1] and "--force-resume packing" in refusals[1]


def test_what_can_be_forced_is_what_can_be_refused():
    assert {"seed", "train_iters", "data_files", "tokenizer"} <= set(CAN_BE_FORCED)
    assert not {"lr", "num_layers", "max_position_embeddings", "micro_batch_size"} & set(
        CAN_BE_FORCED
    )


@pytest.mark.parametrize(
    ("files", "path", "told"),
    [
        ({"x": A, "y": B}, ["0.3", "x", "0.7", "y"], None),
        (
            {"x": REMOTE_A, "y": B},
            ["0.3", "x", "0.7", "y"],
            None,
        ),  # sizes are all that both sides know
        ({"x": B, "y": A}, ["0.3", "x", "0.7", "y"], "data-path was"),
        ({"x": A, "y": B}, ["0.5", "x", "0.5", "y"], "data-path was"),
        ({"x": A}, ["x"], "data-path was"),
        (
            {"a": A, "b": A},
            FILES["data_path"],
            "b.bin has changed since the checkpoint: it was 12 bytes, sha256 ba and is now 10 bytes",
        ),
        (
            {"a": A, "b": B | {"_loss_mask.bin": {"bytes": 1, "sha256": "c"}}},
            FILES["data_path"],
            "b_loss_mask.bin has changed since the checkpoint: it was missing and is now 1 bytes",
        ),
        (
            {"a": A | {".idx": {"bytes": 7, "sha256": "zz"}}, "b": B},
            FILES["data_path"],
            "it was 7 bytes, sha256 ab",
        ),
    ],
)
def test_data_is_known_by_its_content_not_by_its_name(files, path, told):
    before = {"files": {"a": A, "b": B}} | FILES
    notices, refusals = verdict(before, {"files": files} | FILES | {"data_path": path})
    if told is None:
        assert (
            refusals == []
            and len(notices) == 1
            and "the same tokens under another name" in notices[0]
        )
    else:
        assert refusals and told in refusals[0]


def test_changed_data_can_be_forced():
    changed = FILES | {"files": {"a": A, "b": A}}
    notices, refusals = verdict(FILES | {"files": {"a": A, "b": B}}, changed, forced=["data_files"])
    assert (
        refusals == []
        and all(line.startswith("forced: b.") for line in notices)
        and len(notices) == 2
    )


@pytest.mark.parametrize(
    ("before", "now", "refused"),
    [
        (["500 a"], ["500 b"], False),
        (["50 a", "500 b"], ["50 a"], False),
        ([], ["500 b"], False),
        (["50 a"], ["50 b"], True),
        (["50 a"], ["60 a"], True),
        ([], ["50 a"], True),
    ],
)
def test_stages_that_have_not_begun_may_change(before, now, refused):
    stages = FILES | {"data_path": ["a"]}
    notices, refusals = verdict(
        stages | {"data_stages": before}, stages | {"data_stages": now}, consumed=100
    )
    assert (len(refusals), len(notices)) == (refused, not refused)


@pytest.mark.parametrize(
    ("before", "now", "told"),
    [
        (("old", "x.model"), ("old", "moved/x.model"), None),
        (
            ("old", "x.model"),
            ("new", "y.model"),
            "tokenizer-model was x.model and is now y.model: ids mean",
        ),
        (("old", "x.model"), ("new", "x.model"), "the tokenizer's digest was old and is now new"),
    ],
)
def test_a_tokenizer_is_known_by_its_ids(before, now, told):
    sides = [{"tokenizer": digest, "tokenizer_model": model} for digest, model in (before, now)]
    notices, refusals = verdict(*sides)
    assert notices == [] and (
        refusals == [] if told is None else told in refusals[0] and len(refusals) == 1
    )


@pytest.mark.parametrize(
    ("digest", "told"),
    [("old", None), ("new", "vocab-file was not given and is now v: ids mean different words")],
)
def test_two_files_may_replace_the_folder_that_had_both(digest, told):
    pair = {"tokenizer_model": None, "vocab_file": "v", "merge_file": "m"}
    before = {"tokenizer": "old", "tokenizer_model": "folder"}
    notices, refusals = verdict(before, {"tokenizer": digest} | pair)
    assert notices == []
    assert refusals == [] if told is None else told in " ".join(refusals)


def test_a_checkpoint_that_knows_less_is_judged_by_what_it_knows():
    before = Side({"seed": 1234, "num_layers": 12, "gone": 3})
    assert compare_configs(before, side(files={"a": A}, tokenizer="t"), 0) == ([], [])
