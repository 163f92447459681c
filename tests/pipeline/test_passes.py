"""Every schedule ends; every order that would hang or give wrong gradients is refused with the rank and the action."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.pipeline.passes import (
    ScheduleError,
    add_transfers,
    check,
    compile_order,
    draw,
    placement_of,
    topological_order,
)
from megascratch.pipeline.schedule import SCHEDULES, Action, Placement, Schedule, one_f_one_b, zb_h1
from tests.support.schedules import parse


def test_transfers_of_one_f_one_b_are_this_picture():
    """A receive is posted one action before it is used; a send stands behind what it sends."""
    assert draw(compile_order("1f1b", ranks=2, microbatches=3)) == [
        "F0 SF0 RB0 F1 SF1 B0 RB1 F2 SF2 RB2 B1 B2",
        "RF0 F0 RF1 B0 SB0 F1 RF2 B1 SB1 F2 B2 SB2",
    ]


def test_transfers_of_chunks_go_around_the_ring():
    assert draw(compile_order("gpipe", ranks=2, microbatches=1, chunks=2)) == [
        "RF0.1 F0 SF0 RB0.1 F0.1 SF0.1 RB0 B0.1 SB0.1 B0",
        "RF0 RF0.1 F0 SF0 F0.1 RB0 B0.1 SB0.1 B0 SB0",
    ]


def test_a_v_turns_on_the_last_rank_and_outputs_come_back_on_the_links_of_the_gradients():
    """Forwards of chunk 1 and gradients of chunk 0 share the links up the ranks, in the order of their sends."""
    assert draw(compile_order("zb_v", ranks=2, microbatches=2, chunks=2)) == [
        "F0 SF0 RF0.1 F1 SF1 F0.1 I0.1 SB0.1 RF1.1 W0.1 F1.1 I1.1 SB1.1 RB0 W1.1 I0 RB1 W0 I1 W1",
        "RF0 F0 RF1 F0.1 SF0.1 F1 RB0.1 F1.1 SF1.1 I0.1 W0.1 I0 SB0 RB1.1 W0 I1.1 W1.1 I1 SB1 W1",
    ]


def test_evaluation_streams_through_a_v_as_well():
    placement = Placement(3, 2, folded=True)
    orders = compile_order("forward_only", 3, 4, 2, placement=placement)
    check(orders, placement)
    with pytest.raises(ScheduleError):
        check(orders)


def test_one_rank_hands_its_chunks_over_without_transfers():
    assert draw(compile_order("interleaved", ranks=1, microbatches=2, chunks=2)) == [
        "F0 F0.1 B0.1 F1 B0 F1.1 B1.1 B1"
    ]


def test_receives_follow_the_order_of_the_sends_where_they_are_used_in_another():
    orders = add_transfers(parse("F0 F1", "F1 F0"))
    assert draw(orders) == ["F0 SF0 F1 SF1", "RF0 RF1 F1 F0"]
    check(orders)


def test_input_gradients_are_sent_before_weight_gradients():
    orders = [zb_h1(rank, 2, 2) for rank in range(2)]
    assert draw(add_transfers(orders)) == [
        "F0 SF0 RB0 F1 SF1 I0 RB1 W0 I1 W1",
        "RF0 F0 RF1 I0 SB0 F1 I1 SB1 W0 W1",
    ]


CHUNKS = {"1f1b": 1, "zb_h1": 1, "zb_h2": 1, "zb_v": 2, "dualpipe_v": 2}
numbers = st.tuples(st.integers(1, 6), st.integers(1, 14), st.integers(1, 3), st.integers(0, 5))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(SCHEDULES)), numbers)
def test_every_schedule_is_complete_and_ends_for_all_numbers(schedule, numbers):
    ranks, microbatches, chunks, extra = numbers
    chunks = CHUNKS.get(schedule, chunks)
    orders = compile_order(schedule, ranks, microbatches, chunks, ranks + extra if extra else None)
    placement = placement_of(schedule, ranks, chunks)
    check(orders, placement)
    assert sum(1 for _ in topological_order(orders, placement)) == sum(map(len, orders))
    computed = [a for order in orders for a in order if a.op in ("F", "B", "I")]
    assert len(computed) == ranks * chunks * microbatches * (1 if schedule == "forward_only" else 2)


@settings(max_examples=50, deadline=None)
@given(
    st.sampled_from(["gpipe", "1f1b", "interleaved", "zb_h1"]),
    st.integers(1, 6),
    st.integers(1, 14),
)
def test_with_one_chunk_no_send_needs_a_buffer(schedule, ranks, microbatches):
    """Receives are posted early enough that even sends that wait for their receive never close a circle."""
    check(compile_order(schedule, ranks, microbatches), blocking_sends=True)


def without(line: int, *words: str):
    """compile_order's 1F1B of 2 ranks with these actions of one rank taken out."""
    lines = draw(compile_order("1f1b", ranks=2, microbatches=4))
    lines[line] = " ".join(word for word in lines[line].split() if word not in words)
    return parse(*lines)


def swapped(line: int, one: str, other: str):
    """The same with two actions of one rank swapped."""
    lines = draw(compile_order("1f1b", ranks=2, microbatches=4))
    names = {one: other, other: one}
    lines[line] = " ".join(names.get(word, word) for word in lines[line].split())
    return parse(*lines)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (without(0, "SF3"), "rank 1 waits forever at RF3: rank 0 never sends it"),
        (without(1, "SB2"), "rank 0 waits forever at RB2: rank 1 never sends it"),
        (without(1, "RF3"), "rank 1 runs F3 without its input: no RF3 before it"),
        (without(1, "RF3", "F3", "B3", "SB3"), "rank 1 lacks F3"),
        (without(0, "B3", "RB3"), "rank 0 lacks B3"),
        (without(0, "F0"), "rank 0 lacks F0"),
        (swapped(0, "SF1", "SF2"), "rank 0 runs SF2 before F2"),
        (swapped(1, "F0", "B0"), "rank 1 runs B0 before F0"),
        (swapped(1, "F1", "B0"), "rank 1 runs SB0 before B0"),
        (swapped(1, "RF2", "RF3"), "rank 1 runs F2 without its input: no RF2 before it"),
        (
            swapped(0, "B2", "B3"),
            "rank 0 runs B2 after B3: gradients add up in the order of the micro-batches",
        ),
        (
            parse("F0 SF0 F1 SF1", "RF1 RF0 F0 F1"),
            "rank 1 receives RF1 where rank 0 sends SF0: a link delivers in",
        ),
        (parse("F0 SF0 F0", "RF0 F0"), "rank 0 runs F0 more than once"),
        (parse("F0 SF0 SF0", "RF0 F0"), "rank 0 runs SF0 more than once"),
        (parse("F0 SF0", "RF0 F0 SF0"), "rank 1 sends SF0, but rank 0 never receives it"),
        (parse("F0 B0 I0 W0"), "rank 0 runs B0 and again its parts I and W"),
        (parse("F0 I0"), "rank 0 lacks W0"),
        (parse("F0 W0"), "rank 0 lacks B0"),
        (parse("F0 W0 I0"), "rank 0 runs W0 before I0"),
        (parse("F0 F1 I0 I1 W1 W0"), "rank 0 runs W0 after W1: gradients add up"),
    ],
)
def test_a_wrong_order_is_refused_by_rank_and_action(orders, message):
    with pytest.raises(ScheduleError, match=message.replace(".", r"\.")):
        check(orders)


def test_a_circular_wait_is_told_as_a_circle():
    """Rank 0 wants the gradient before it sends what the gradient needs."""
    orders = parse("F0 SF0 F1 RB0 RB1 B0 B1 SF1", "RF0 RF1 F0 F1 B0 SB0 B1 SB1")
    with pytest.raises(ScheduleError) as error:
        check(orders)
    assert str(error.value) == (
        "circular wait: rank 0 waits at B0 for SB0 of rank 1; rank 1 waits at F1 for SF1 of rank 0"
    )


def test_a_circular_wait_of_sends_without_buffers_is_found_when_asked_for():
    orders = parse("F0 SF0 F1 SF1 RB0 B0 RB1 B1", "RF0 F0 B0 SB0 RF1 F1 B1 SB1")
    check(orders)
    circle = "rank 0 waits at SF1 for RF1 of rank 1; rank 1 waits at SB0 for RB0 of rank 0"
    with pytest.raises(ScheduleError, match=circle):
        check(orders, blocking_sends=True)


def test_a_rest_of_microbatches_as_a_group_of_its_own_would_hang():
    """Why `interleaved` gives a small rest to the first group: Megatron-LM refuses 5 micro-batches on 4 ranks."""
    turns = [(m, c) for group in (range(4), range(4, 5)) for c in range(3) for m in group]
    orders = []
    for rank in range(4):
        forwards, backwards = (
            [Action("F", m, c) for m, c in turns],
            [Action("B", m, 2 - c) for m, c in turns],
        )
        order = forwards[: (warmup := 2 * (3 - rank) + 8)]
        for pair in zip(forwards[warmup:], backwards, strict=False):
            order += pair
        orders.append(order + backwards[max(len(forwards) - warmup, 0) :])
    with pytest.raises(ScheduleError, match="circular wait"):
        check(add_transfers(orders, Placement(4, 3)))
    check(compile_order("interleaved", 4, 5, 3))


def test_orders_are_made_once():
    assert compile_order("1f1b", 4, 8) is compile_order("1f1b", 4, 8)


def test_a_new_schedule_is_one_function_and_one_row(monkeypatch):
    monkeypatch.setitem(SCHEDULES, "mine", Schedule(lambda *numbers: one_f_one_b(*numbers)))
    check(compile_order("mine", ranks=4, microbatches=8))
