"""One rank reads for many at a start, and what differs on one of them is still found."""

import hashlib
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megascratch.checkpoint import read_manifest, save
from megascratch.checkpoint import steps as checkpoint_steps
from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.settings import Config
from megascratch.parallel.control import Control
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.training.start import once, resume
from megascratch.training.start.once import code_digest, code_state, found_once, shared_checkpoint
from megascratch.training.start.resume import find_checkpoint
from tests.support import machines
from tests.support.machines import CHANGES, Counted, on_machines

HOSTS = ["a", "a", "b", "b"]
DEFAULTS = flat(Config())


def test_each_machine_reads_a_corpus_once(tmp_path):
    machines.each_machine_reads_a_corpus_once(tmp_path)


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_digest_is_taken_only_of_the_same_file(tmp_path, change):
    machines.a_digest_is_taken_only_of_the_same_file(tmp_path, change)


def test_machines_with_other_code_differ(tmp_path):
    machines.machines_with_other_code_differ(tmp_path)


def test_the_state_of_the_package_changes_with_each_of_its_files(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("a = 1\n")
    (tmp_path / "b.txt").write_text("not code\n")
    monkeypatch.setattr(once.megascratch, "__file__", str(tmp_path / "__init__.py"))
    state = code_state()
    assert code_digest() == hashlib.sha256(b"a.py 6\na = 1\n").hexdigest()[:16]
    (tmp_path / "b.txt").write_text("still not code\n")
    assert code_state() == state
    (tmp_path / "a.py").write_text("a = 11\n")
    assert code_state() != state


def test_the_first_rank_that_asks_answers_for_all():
    answers = Counted(lambda: {"numbers": [1, 2]})
    assert on_machines(HOSTS, lambda it: found_once(it, "q", answers)) == [{"numbers": [1, 2]}] * 4
    assert len(answers.hosts) == 1


def test_the_others_do_not_wait_for_a_rank_that_failed_or_died_with_the_question():
    def refused():
        raise UserError("no file")

    first, *others = sorted(on_machines(HOSTS, lambda it: found_once(it, "q", refused)), key=str)
    assert others == [None] * 3 or {str(first), *map(str, others)} == {"None", "no file"}
    store = dist.HashStore()
    store.add("q/asked", 1)  # and then it died
    late = Rendezvous(store, 1, 2, timedelta(seconds=0.2))
    assert found_once(late, "q", refused) is None


# ---- the checkpoint --------------------------------------------------------------------------------------------


def saved(folder: Path, *steps: int) -> dict:
    """Checkpoints of these steps; the settings that resume from the newest."""
    held = [ShardedTensor("w", (4,), Box((0,), (4,)), torch.arange(4.0), copy=0)]
    for step in steps:
        state = {"config": {"training": {"global_batch_size": 10 + step}}}
        save(folder, step, held, state, Control.alone())
    return DEFAULTS | {"load": str(folder), "save": str(folder.parent / "other")}


def found(meeting: Rendezvous | None, settings: dict):
    return shared_checkpoint(meeting, settings, batch_is_given=False)


def test_one_rank_of_a_run_opens_the_files_of_a_checkpoint_and_one_of_a_machine_its_manifest(
    tmp_path, monkeypatch
):
    settings = saved(tmp_path / "run", 1, 2)
    alone = find_checkpoint(settings, batch_is_given=False)
    checks = Counted(checkpoint_steps.check_files)
    reads = Counted(read_manifest)
    monkeypatch.setattr(checkpoint_steps, "check_files", checks)
    monkeypatch.setattr(resume, "read_manifest", reads)
    assert on_machines(HOSTS, lambda it: found(it, settings)) == [alone] * 4
    assert alone is not None and (alone.start.name, alone.batch) == ("step_00000002", 12)
    assert len(checks.hosts) == 1
    assert sorted(reads.hosts) == ["a", "b"]


def test_a_rank_that_sees_another_folder_finds_its_own_checkpoint(tmp_path):
    """As today: the comparison of the ranks says that they differ."""
    newer = saved(tmp_path / "newer", 1, 2)
    older = saved(tmp_path / "older", 1)
    results = on_machines(HOSTS, lambda it: found(it, older if it.rank > 1 else newer))
    assert [it.start for it in results[:2]] == [tmp_path / "newer" / "step_00000002"] * 2
    assert [it.start for it in results[2:]] == [tmp_path / "older" / "step_00000001"] * 2


def test_a_damaged_newest_step_is_skipped_on_all_ranks(tmp_path):
    settings = saved(tmp_path / "run", 1, 2)
    for file in (tmp_path / "run" / "step_00000002").glob("*.safetensors"):
        file.write_bytes(b"short")
    results = on_machines(HOSTS, lambda it: found(it, settings))
    assert [it.start.name for it in results] == ["step_00000001"] * 4


def test_each_rank_says_why_it_finds_no_checkpoint(tmp_path):
    settings = DEFAULTS | {"load": str(tmp_path / "no"), "save": str(tmp_path)}
    results = on_machines(HOSTS, lambda it: found(it, settings))
    assert [str(error) for error in results] == [
        f"no checkpoint: {tmp_path / 'no'} is not a folder"
    ] * 4


def test_a_new_run_has_no_checkpoint_on_any_rank(tmp_path):
    settings = DEFAULTS | {"save": str(tmp_path / "new"), "auto_resume": True}
    assert on_machines(HOSTS, lambda it: found(it, settings)) == [None] * 4
