"""A random order is complete and free of deadlock for whatever numbers, and no two are alike."""

import random

from hypothesis import given, settings
from hypothesis import strategies as st

from megascratch.pipeline.csv_schedule import read_table
from megascratch.pipeline.passes import add_transfers, check
from megascratch.pipeline.schedule import Placement
from megascratch.verification.random_schedule import random_schedule_file, random_schedules


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 3), st.integers(1, 7), st.booleans()
)
def test_a_random_order_can_be_played(seed, ranks, chunks, microbatches, folded):
    placement = Placement(ranks, chunks, folded and chunks % 2 == 0)
    check(
        add_transfers(random_schedules(random.Random(seed), placement, microbatches), placement),
        placement,
    )


def test_a_file_is_read_as_it_was_drawn():
    placement = Placement(3, 2, folded=True)
    table = read_table(random_schedule_file(random.Random(1), placement, 4))
    assert (table.placement, table.microbatches) == (placement, 4)
    drawn = {str(random_schedules(random.Random(seed), placement, 4)) for seed in range(20)}
    assert len(drawn) == 20
    assert all(f"op='{op}'" in order for order in drawn for op in "FBIW")
