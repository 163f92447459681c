"""A prefetch changes no item and no order, hands errors over, makes no more than asked for and leaves no thread."""

import threading
import time

import pytest

from megascratch.data.prefetch import Prefetch


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_items_come_in_order_and_then_end(ahead):
    with Prefetch(iter(range(20)), ahead) as items:
        assert list(items) == list(range(20))
        assert list(items) == []
    assert threads() == []


@pytest.mark.parametrize("ahead", [0, 3])
def test_an_error_is_raised_in_its_place_with_its_own_type(ahead):
    def source():
        yield 1
        raise ZeroDivisionError("while making item 1")

    with Prefetch(source(), ahead) as items:
        assert next(items) == 1
        with pytest.raises(ZeroDivisionError, match="item 1"):
            next(items)
        assert list(items) == []


@pytest.mark.parametrize(("ahead", "made"), [(0, 1), (1, 3), (4, 6)])
def test_no_more_is_made_ahead_than_asked_for(ahead, made):
    """One is used, `ahead` wait, and one more is in the thread's hands."""
    seen = []
    with Prefetch((seen.append(number) or number for number in range(100)), ahead) as items:
        next(items)
        for _ in range(30_000):
            if len(seen) < made:
                time.sleep(0.01)
        assert len(seen) == made
    assert len(seen) <= made + 1 and threads() == []


def test_closing_ends_a_thread_that_waits_for_room_and_one_that_is_making():
    begun, go_on = threading.Event(), threading.Event()

    def slow():
        begun.set()
        yield go_on.wait()

    waiting, making = Prefetch(iter(range(100)), 1), Prefetch(slow(), 1)
    assert begun.wait(300) and len(threads()) == 2
    waiting.close()
    go_on.set()
    making.close()
    assert threads() == [] and list(waiting) == []
