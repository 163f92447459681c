"""What the start of a rank asks of the world grows with its own lines, not with the world: for 8, 1,024 and 16,384
ranks."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest

from megascratch.checkpoint import read_manifest
from megascratch.config.layout import Layout
from megascratch.parallel.control import FAN_OUT
from tests.support.simulated_starts import (
    LARGE_BATCH,
    LAST_OF_ITS_MACHINE,
    TP2_PP2,
    a_larger_world_asks_for_no_more,
    a_rank_reads_the_rows_of_its_own_tensors,
    part,
    start,
)
from tools import simulated_start as tool
from tools.simulated_start import simulated_start, table, written_by

WORLDS = (8, 1024, 16384)


def test_only_the_data_line_grows_with_the_world():
    of_eight = start(8).lines
    for world in WORLDS:
        lines = dict(start(world).lines)
        assert lines.pop("data") == Layout(tp=2, pp=2, dp=world // 4).dp
        for level in ("control level 0", "second control level 0"):
            assert lines.pop(level) == min(world, FAN_OUT)
        assert lines == {name: size for name, size in of_eight.items() if name in lines}
        assert len(lines) + 3 == len(of_eight) == part("process groups", start(world)).groups


def test_a_rank_is_connected_with_its_own_lines_and_its_group_in_the_trees():
    """By hand: tp 1, pp 1, embedding on the same pair, four links, data dp - 1, and two trees of up to 32 ranks."""
    for world in WORLDS:
        trees = 2 * (min(world, FAN_OUT) - 1)
        others = sum(
            size - 1
            for name, size in start(world).lines.items()
            if "control" not in name and name != "data"
        )
        expected = trees + others + world // 4 - 1
        assert part("process groups", start(world)).sockets == expected


def test_the_comparison_of_the_ranks_costs_a_rank_the_same_in_each_world():
    costs = {
        (it.store_calls, it.store_bytes)
        for it in (part("compare", start(world)) for world in WORLDS)
    }
    assert len(costs) == 1
    assert {start(world).keys for world in WORLDS} == {start(8).keys}


def test_what_the_first_rank_reads_in_the_comparison_is_one_short_text_for_each_rank():
    small = part("compare", start(1024, 0))
    large = part("compare", start(16384, 0))
    text = (large.store_bytes - small.store_bytes) / (16384 - 1024)
    assert text < 200


def test_the_model_is_made_with_the_same_messages_in_each_world():
    assert len({part("model", start(world)).messages for world in WORLDS}) == 1


def test_the_division_of_a_save_costs_a_rank_the_same_in_each_world():
    """Up its group of the tree and down again: whether all have divided what they hold, and the sum of the bytes."""
    plans = [part("plan of a save", start(world)) for world in WORLDS]
    assert [it.messages for it in plans] == [4, 4, 4]
    assert max(it.object_bytes for it in plans) < 100


def test_a_rank_reads_the_rows_of_its_own_tensors(tmp_path):
    a_rank_reads_the_rows_of_its_own_tensors(tmp_path, lambda: None)


def test_the_first_rank_alone_reads_the_manifest_and_the_whole_table(tmp_path):
    step = written_by(TP2_PP2, 16, tmp_path)
    manifest = read_manifest(step)
    read = simulated_start(TP2_PP2, 64, 0, checkpoint=step).read
    assert read[".json"] == (step / "manifest.json").stat().st_size
    assert manifest.table_bytes <= read[".bin"] <= 2 * manifest.table_bytes


def test_a_large_model_of_a_preset_without_data_starts_in_a_large_world():
    """Llama-3 405B on 16,384 ranks: the model takes no memory."""
    it = simulated_start(["--config", "llama3-405b"], 16384, 5000)
    assert it.lines["tp"] == 8 and it.lines["data"] == 128
    assert part("process groups", it).groups == 9


def test_a_larger_world_asks_for_no_more(tmp_path):
    a_larger_world_asks_for_no_more(tmp_path, lambda: None)


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--world", "8", "--rank", "8"), "--rank (8) must be from 0 to 7: the world has 8 ranks"),
        (("--world", "0"), "--world (0) must be at least 1"),
        (("--world", "8", "10"), "world size (10)"),
        (("--world", "8", "--resume-from", "6"), "world size (6)"),
        (("--world", "8", "--ranks-per-machine", "0"), "--ranks-per-machine (0) must be at least"),
    ],
)
def test_what_cannot_start_is_refused_with_the_numbers_before_any_start(capsys, flags, told):
    assert tool.main([*flags, *TP2_PP2]) == 2
    out, err = capsys.readouterr()
    assert told in err and "Traceback" not in err and out == ""


def test_a_world_of_one_rank_starts_without_asking_anyone():
    alone = simulated_start([], 1, 0)
    assert alone.lines == {} and [it.messages for it in alone.parts] == [0, 0, 0, 0]


def test_the_command_prints_a_table_or_json(capsys):
    words = ["--world", "8", "--rank", "0", *TP2_PP2]
    assert tool.main([*words, "--json"]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert (record["world"], record["rank"]) == (8, 0)
    names = [it.name for it in start(8).parts]
    assert [each["name"] for each in record["parts"]] == names
    lines = table([start(8)]).splitlines()
    assert lines[0].split()[:2] == ["world", "part"] and len(lines) == 1 + len(names)


def test_a_start_asks_the_same_in_a_process_of_its_own():
    """As each of several worlds has one."""
    flags = Namespace(rank=0, ranks_per_machine=8, checkpoint=None)
    other = tool._in_a_process(flags, 8, [*TP2_PP2, *LARGE_BATCH])
    here = start(8, 0)
    assert other.lines == here.lines and other.keys == here.keys
    for one, same in zip(other.parts, here.parts, strict=True):
        assert replace(one, peak_mib=None, seconds=0) == replace(same, peak_mib=None, seconds=0)


def test_a_rank_starts_alike_with_the_answers_of_the_first_rank_from_elsewhere():
    """As the command starts it: the first rank in another process."""
    words = [*TP2_PP2, *LARGE_BATCH]
    answers = tool.answers_of_first(words, 8, 8, None)
    apart = simulated_start(words, 8, LAST_OF_ITS_MACHINE, answers=answers)
    here = start(8)
    assert apart.lines == here.lines and apart.keys == here.keys
    for one, same in zip(apart.parts, here.parts, strict=True):
        assert (one.store_calls, one.messages) == (same.store_calls, same.messages)
