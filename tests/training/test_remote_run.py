"""A run whose checkpoints lie in a store is the run whose checkpoints lie on a disk: it goes on, keeps, evaluates and
survives the same."""

import json
import os
import warnings

import fsspec
import pytest

from megascratch import checkpoint
from megascratch.checkpoint.open_checkpoint import problems
from megascratch.commands import main
from megascratch.runtime.faults import VARIABLE
from megascratch.storage import store as store_module
from megascratch.storage.path import storage_path
from megascratch.storage.store import Store, StoreError
from megascratch.training.health.skipped_samples import records, write_down
from tests.support import s3_server
from tests.support.small_models import save_model
from tests.support.supervised_runs import DP2, SMALL

RUN = "memory://bucket/run"


@pytest.fixture(autouse=True)
def store(monkeypatch):
    monkeypatch.setattr(store_module, "WAITS", (0.0, 0.0))
    yield
    fsspec.filesystem("memory").store.clear()


def train(folder, *words, steps=8):
    settings = dict(zip(SMALL[:-1:2], SMALL[1::2], strict=True)) | {"--train-iters": str(steps)}
    flags = [word for pair in settings.items() for word in pair]
    return main(["pretrain", *flags, "--mock-data", "--output-dir", str(folder), *words])


def files(step):
    """The data files of a step by their writers' ranks; the rest of a name differs in every writing."""
    if isinstance(step := storage_path(step), os.PathLike):
        return {path.name[:5]: path.read_bytes() for path in step.glob("*.safetensors")}
    store = Store(step.url)
    return {
        name[:5]: store.content(f"{step}/{name}")
        for name in store.names(step.url)
        if name.endswith(".safetensors")
    }


def numbers(folder):
    return [int(path.name[-2:]) for path in checkpoint.list_steps(folder)]


def test_a_run_goes_on_from_a_store_prunes_there_and_ends_with_the_weights_of_one_on_a_disk(
    tmp_path, capsys
):
    assert train(tmp_path / "calm") == 0
    keep = ["--save", RUN, "--keep-last-n-checkpoints", "2"]
    assert train(tmp_path / "a", *keep, "--exit-interval", "4") == 80
    assert train(tmp_path / "b", *keep, "--auto-resume") == 0
    assert numbers(RUN) == [8, 6]
    assert (
        files(f"{RUN}/step_00000008")
        == files(tmp_path / "calm" / "checkpoints" / "step_00000008")
        != {}
    )
    assert train(tmp_path / "c", "--load", f"{RUN}/step_00000006", "--save", f"{RUN}2") == 0
    assert files(f"{RUN}2/step_00000008") == files(f"{RUN}/step_00000008")
    assert (
        train(tmp_path / "d", "--save", RUN) == 2
        and "already holds step_00000008" in capsys.readouterr().err
    )


def test_a_damaged_newest_step_is_moved_out_of_the_way_and_written_again(tmp_path, capsys):
    assert train(tmp_path, "--save", RUN) == 0
    newest = f"{RUN}/step_00000008"
    name = next(name for name in Store(RUN).names(newest) if name.endswith(".safetensors"))
    before = files(newest)
    raw = bytearray(Store(RUN).content(f"{newest}/{name}"))
    raw[-1] ^= 1
    Store(RUN).put(f"{newest}/{name}", bytes(raw))
    assert train(tmp_path, "--save", RUN, "--load", RUN) == 0
    told = capsys.readouterr().err
    assert f"skipped step_00000008: {newest}/{name} is damaged: the bytes of" in told
    assert f"{newest} is damaged and was renamed to damaged.step_00000008." in told
    assert files(newest) == before


def test_a_store_that_refuses_is_warned_about_and_training_goes_on(tmp_path, capsys, monkeypatch):
    upload, refused = Store.upload, []

    def sometimes(self, url, *rest):
        if "step_00000004" in url:
            refused.append(url)
            raise StoreError(
                f"{url} cannot be written after 6 attempts: 503; check network and store"
            )
        upload(self, url, *rest)

    monkeypatch.setattr(Store, "upload", sometimes)
    assert train(tmp_path, "--save", RUN) == 0 and refused
    assert "warning: no checkpoint of step 4 (failure 1)" in (told := capsys.readouterr().err)
    assert "503; check network and store; training continues" in told and numbers(RUN) == [8, 6, 2]


@pytest.mark.parametrize("deaf", ["delete_below", "names"])
def test_elders_that_cannot_be_deleted_do_not_undo_a_save(tmp_path, capsys, monkeypatch, deaf):
    """A store that answers no more once a step is there, when its elders are looked for or deleted."""
    original, there = getattr(Store, deaf), f"{RUN}/step_00000008/manifest.json"

    def sometimes(self, url):
        if Store(RUN).exists(there):
            raise StoreError("503")
        return original(self, url)

    monkeypatch.setattr(Store, deaf, sometimes)
    with warnings.catch_warnings(record=True) as warned:
        assert (
            train(tmp_path, "--save", RUN, "--keep-last-n-checkpoints", "1", "--no-async-save") == 0
        )
    told = capsys.readouterr()
    assert f"checkpoint {RUN}/step_00000008 |" in told.out
    assert "503" in told.err + "".join(str(warning.message) for warning in warned)


@pytest.mark.parametrize("words", [["--nproc-per-node", "2", "--data-parallel-size", "2"], []])
@pytest.mark.parametrize("flag", ["--save", "--load"])
def test_a_missing_library_is_said_before_any_worker_starts(
    tmp_path, capsys, monkeypatch, flag, words
):
    def missing(url, **how):
        raise ImportError("Install s3fs")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    assert train(tmp_path / "run", flag, "s3://bucket/run", *words) == 2
    told = capsys.readouterr().err
    assert "s3:// needs s3fs, which is not installed: pip install 'megascratch[s3]'" in told
    assert "Traceback" not in told and not (tmp_path / "run").exists()


def test_a_load_that_is_not_there_is_refused(tmp_path, capsys):
    assert train(tmp_path, "--load", f"{RUN}/nothing") == 2
    assert f"--load {RUN}/nothing: no checkpoint" in capsys.readouterr().err


def test_samples_that_a_run_jumped_over_are_remembered_in_the_store():
    jumps = [{"first": 8, "stop": 16, "back_to": 1}, {"first": 32, "stop": 48, "back_to": 2}]
    assert records(storage_path(RUN)) == []
    for jump in jumps:
        write_down(storage_path(RUN), jump)
    assert records(storage_path(RUN)) == jumps


def test_a_model_is_evaluated_and_writes_text_from_a_store_as_from_a_disk(tmp_path, capsys):
    save_model(tmp_path / "run")
    assert main(["checkpoint", "reshard", str(tmp_path / "run"), "--output", RUN]) == 0
    (tmp_path / "heldout.jsonl").write_text('{"text": "abc"}\n')
    told = []
    for folder in (str(tmp_path / "run"), RUN, f"{RUN}/step_00000003"):
        result = tmp_path / "result.json"
        words = ["--load", folder, "--device", "cpu"]
        assert (
            main(
                [
                    "evaluate",
                    *words,
                    "--input",
                    str(tmp_path / "heldout.jsonl"),
                    "--output-json",
                    str(result),
                ]
            )
            == 0
        )
        capsys.readouterr()
        assert (
            main(["generate", *words, "--prompt", "ab", "--greedy", "--max-new-tokens", "5"]) == 0
        )
        told.append((capsys.readouterr().out, json.loads(result.read_text())["heldout_nats"]))
    assert told[0] == told[1] == told[2]


def verb(capsys, *words, code=0):
    assert main(["checkpoint", *words]) == code
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return json.loads(said.out) if "--json" in words else said.out + said.err


def test_every_verb_works_on_addresses(tmp_path, capsys):
    assert train(tmp_path, "--save", RUN) == 0
    capsys.readouterr()
    assert [row["step"] for row in verb(capsys, "inspect", RUN, "--json")["steps"]] == [8, 6, 4, 2]
    assert (
        verb(capsys, "inspect", f"{RUN}/step_00000004", "--json")["path"] == f"{RUN}/step_00000004"
    )
    assert verb(capsys, "verify", RUN).count("valid") == 4
    assert "tensors are bitwise equal" in verb(capsys, "diff", f"{RUN}/step_00000002", RUN, code=1)
    done = verb(
        capsys, "reshard", RUN, "--output", "memory://bucket/other", "--files", "3", "--json"
    )
    assert done["files"] == 3 and done["path"] == "memory://bucket/other/step_00000008"
    # down to this machine, and up
    done = verb(capsys, "reshard", RUN, "--output", str(tmp_path / "here"), "--json")
    verb(capsys, "reshard", done["path"], "--output", "memory://bucket/back")
    assert "differ" not in verb(capsys, "diff", RUN, "memory://bucket/back")
    mean = verb(
        capsys, "average", f"{RUN}/step_00000006", RUN, "--output", "memory://bucket/mean", "--json"
    )["path"]
    assert verb(capsys, "verify", mean) == f"{mean}: valid\n"
    assert (
        len(
            verb(capsys, "prune", RUN, "--keep-last-n-checkpoints", "2", "--dry-run", "--json")[
                "deleted"
            ]
        )
        == 2
    )
    assert numbers(RUN) == [8, 6, 4, 2]
    verb(capsys, "prune", RUN, "--keep-last-n-checkpoints", "2")
    assert numbers(RUN) == [8, 6]
    assert "no checkpoint" in verb(capsys, "verify", "memory://bucket/nowhere", code=2)
    lease = checkpoint.acquire(storage_path(RUN))
    Store(RUN).put(f"{RUN}/.writer/00000009.json", b"null")
    with pytest.raises(checkpoint.LeaseLostError):
        lease.require()
    lease.release()


@pytest.fixture
def bucket():
    with s3_server.server() as running:
        s3_server.speak_to(running)
        s3_server.emptied()
        yield f"{s3_server.BUCKET}/run"
        s3_server.be_silent()


FIRST_RANK = [
    f"save.{point}:0:{nth}"
    for nth in (1, 2)
    for point in ("before_commit", "after_commit", "before_delete", "mid_delete")
]
EVERY_RANK = [
    f"save.{point}:{rank}:{nth}"
    for nth in (1, 2)
    for rank in (0, 1)
    for point in ("begin", "thread", "before_write", "write", "after_write")
]


@pytest.mark.deep
def test_a_run_that_is_killed_while_it_sends_ends_with_the_weights_of_the_undisturbed_one(
    tmp_path, monkeypatch, bucket
):
    """Two ranks, each sending its own file to S3; each kill comes in an attempt of its own."""
    kills = FIRST_RANK + EVERY_RANK
    steps = 2 * len(kills) + 6
    assert train(tmp_path / "calm", *DP2, steps=steps) == 0
    monkeypatch.setenv(
        VARIABLE, ",".join(f"{kill}:kill:{attempt}" for attempt, kill in enumerate(kills))
    )
    words = ["--save", bucket, "--keep-last-n-checkpoints", "2", "--max-restarts", str(len(kills))]
    assert train(tmp_path / "wild", *DP2, *words, steps=steps) == 0
    assert len(list((tmp_path / "wild" / "faults").iterdir())) == len(kills)
    kept = checkpoint.list_steps(bucket)
    assert len(kept) == 2 and [list(problems(step)) for step in kept] == [[], []]
    assert files(kept[0]) == files(tmp_path / "calm" / "checkpoints" / kept[0].name) != {}
    assert {name for name in Store(bucket).names(bucket) if name.startswith("step")} == {
        step.name for step in kept
    }
