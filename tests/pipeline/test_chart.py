"""A drawn schedule explains itself: what its colours mean stands below it."""

import pytest

from megascratch.pipeline.chart import figure
from megascratch.pipeline.passes import compile_order, placement_of
from megascratch.pipeline.simulate import simulate

ALWAYS = ["number: micro-batch", "empty: idle (the bubble)"]
PALER = "paler: later model chunks of the rank"


@pytest.mark.parametrize(
    ("schedule", "chunks", "expected"),
    [
        ("1f1b", 1, ["F: forward", "B: backward", *ALWAYS]),
        ("zb_h1", 1, ["F: forward", "I: input gradient", "W: weight gradient", *ALWAYS]),
        ("interleaved", 2, ["F: forward", "B: backward", PALER, *ALWAYS]),
        ("forward_only", 1, ["F: forward", *ALWAYS]),
    ],
)
def test_the_legend_names_each_operation_that_occurs_and_no_other(schedule, chunks, expected):
    orders = compile_order(schedule, 2, 4, chunks)
    timeline = simulate(orders, lambda rank, action: 1.0, placement_of(schedule, 2, chunks))
    (legend,) = figure(timeline, schedule).legends
    assert [text.get_text() for text in legend.get_texts()] == expected
