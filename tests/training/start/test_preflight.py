"""All ranks start alike or none does, and everyone is told who differs in what."""

import threading
from datetime import timedelta

import pytest
import torch.distributed as dist

from megascratch.config.errors import RanksDiffer, RanksSilent, SettingError, UserError
from megascratch.config.fields import flat
from megascratch.parallel import rendezvous
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.training.start import preflight
from megascratch.training.start.once import code_digest
from megascratch.training.start.preflight import RankReport, check_ranks_agree, rank_facts, where
from tests.support.layout_runs import config_of
from tests.support.machines import on_machines

HOSTS = ["a", "a", "b", "b"]


def outcome(
    found: list[RankReport | None], monkeypatch, seconds: float = 5
) -> list[Exception | None]:
    """What each rank raises; None among `found`: it never comes."""
    store, ends = dist.HashStore(), timedelta(seconds=seconds)
    raised: list[Exception | None] = [None] * len(found)
    names = threading.local()
    monkeypatch.setattr(preflight.socket, "gethostname", lambda: names.host)

    def start(rank: int) -> None:
        names.host = HOSTS[rank]
        try:
            check_ranks_agree(Rendezvous(store, rank, len(found), ends), found[rank])
        except UserError as error:
            raised[rank] = error

    threads = [
        threading.Thread(target=start, args=(rank,))
        for rank, item in enumerate(found)
        if item is not None
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return raised


FACTS = {"setting lr": "0.1", "version torch": "2.13", "file c.bin": "bytes 12, sha256 ff"}


def test_ranks_that_found_the_same_start(monkeypatch):
    assert outcome([RankReport(FACTS)] * 4, monkeypatch) == [None] * 4


def test_what_differs_is_told_to_all_by_host_and_what_agrees_is_not(monkeypatch):
    other = FACTS | {"setting lr": "0.2", "file d.bin": "bytes 3"}
    raised = outcome(
        [RankReport(FACTS), RankReport(FACTS), RankReport(FACTS), RankReport(other)], monkeypatch
    )
    assert all(isinstance(error, RanksDiffer) for error in raised)
    (text,) = {str(error) for error in raised}
    assert text.splitlines() == [
        "the ranks differ; nothing was started:",
        "what        a (ranks 0-1)  b (rank 2)  b (rank 3)",
        "setting lr  0.1            0.1         0.2",
        "file d.bin  not there      not there   bytes 3",
    ]


@pytest.mark.parametrize(
    ("problems", "told"),
    [
        (["", "", "no c.bin", "no c.bin"], ["b (ranks 2-3): no c.bin"]),
        (
            ["no c.bin\nno d.bin", "", "", "no c.bin"],
            ["a (rank 0): no c.bin", "a (rank 0): no d.bin", "b (rank 3): no c.bin"],
        ),
        (["no c.bin\nno e"] + ["no c.bin"] * 3, ["no c.bin", "a (rank 0): no e"]),
    ],
)
def test_a_problem_of_one_host_stops_all_and_one_of_everybody_is_said_once(
    monkeypatch, problems, told
):
    raised = outcome([RankReport({}, problem) for problem in problems], monkeypatch)
    assert all(isinstance(error, SettingError) for error in raised)
    assert {str(error) for error in raised} == {"\n".join(told)}


def told(reports: list[RankReport]) -> tuple[list[str], list[int]]:
    """What each of many ranks, each on its own host, is told; and the ranks that had to send their facts."""
    store = dist.HashStore()
    raised = on_machines(
        [f"n{rank}" for rank in range(len(reports))],
        lambda it: check_ranks_agree(it, reports[it.rank]),
        store=store,
    )
    (text,) = {str(error) for error in raised}
    sent = [rank for rank in range(len(reports)) if store.get(f"long/{rank}")]
    return text.splitlines(), sent


def test_one_rank_of_each_kind_sends_its_facts_and_hosts_alike_share_a_column():
    other = FACTS | {"setting lr": "0.2"}
    lines, sent = told([RankReport(other if rank == 5 else FACTS) for rank in range(20)])
    assert lines[1:] == [
        "what        n0 (rank 0) and 18 more hosts  n5 (rank 5)",
        "setting lr  0.1                            0.2",
    ]
    assert sent == [0, 5]


def test_of_many_kinds_of_ranks_the_first_are_shown_and_the_others_are_counted():
    lines, sent = told([RankReport({"setting seed": str(rank)}) for rank in range(20)])
    assert lines[2].split()[2:] == [str(rank) for rank in range(8)]
    assert lines[3:] == ["and 12 more kinds of ranks, each with other values"]
    assert sent == list(range(8))


def test_of_many_hosts_with_one_problem_the_first_are_named_and_the_others_are_counted():
    reports = [RankReport({}, "no c.bin" if rank else "") for rank in range(20)]
    store = dist.HashStore()
    raised = on_machines(
        [f"n{rank}" for rank in range(20)],
        lambda it: check_ranks_agree(it, reports[it.rank]),
        store=store,
    )
    (text,) = {str(error) for error in raised}
    named = [f"n{rank} (rank {rank}): no c.bin" for rank in range(1, 9)]
    assert text.splitlines() == [*named, "11 more hosts: no c.bin"]


def test_a_rank_that_does_not_come_is_named(monkeypatch):
    monkeypatch.setattr(rendezvous, "GOODBYE", 0.1)
    raised = outcome(
        [RankReport(FACTS), RankReport(FACTS), None, RankReport(FACTS)], monkeypatch, seconds=0.5
    )
    assert "rank 2 did not respond within 0.5 s" in str(raised[0])
    assert all(isinstance(raised[rank], RanksSilent) for rank in (0, 1, 3))


def test_alone_a_problem_is_raised_as_it_is():
    check_ranks_agree(None, RankReport(FACTS))
    with pytest.raises(UserError, match=r"^no c\.bin$"):
        check_ranks_agree(None, RankReport(FACTS, "no c.bin"))


def test_the_facts_hold_settings_versions_code_and_files():
    config = config_of(data_cache_path="x")
    facts = rank_facts(
        flat(config),
        {"c": {".bin": {"bytes": 1, "sha256": "f" * 64}}},
        code_digest(),
        {"tokenizer": "none"},
    )
    assert facts["setting lr"] == "0.01" and facts["file c.bin"] == "bytes 1, sha256 " + "f" * 16
    assert {name for name in flat(config) if f"setting {name}" not in facts} == {"data_cache_path"}
    assert (
        facts["version torch"][0] == "2"
        and len(facts["code megascratch"]) == 16
        and facts["tokenizer"] == "none"
    )


@pytest.mark.parametrize(
    ("ranks", "text"),
    [([3], "h (rank 3)"), ([0, 1, 2, 5], "h (ranks 0-2, 5)"), (range(999), "h (ranks 0-998)")],
)
def test_ranks_are_written_short(ranks, text):
    assert where("h", list(ranks)) == text
