"""Laws of a validation."""

from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from megascratch.config.fields import with_fields
from megascratch.data.samples.batch import collate
from megascratch.training import loop, step_log
from megascratch.training.loop import _Loop
from megascratch.training.stop import StopRequest
from tests.support.breaks.state import Rows, _shared_folder
from tests.support.corpora import write
from tests.support.layout_runs import built_run, config_of
from tests.support.rank_pool import on_ranks

DOCUMENTS, SEQUENCE = 30, 16
SETTINGS = {
    "num_layers": 2,
    "mock_data": False,
    "split": "5,5,0",
    "seq_length": SEQUENCE,
    "global_batch_size": 8,
    "train_iters": 1,
    "eval_interval": 1,
    "eval_iters": 100,
    "device": "cpu",
}
LAYOUTS = {
    "one": {},
    "dp2": {"data_parallel_size": 2, "micro_batch_size": 2},
    "pp2": {"pipeline_model_parallel_size": 2},
}


class KeptEvaluations(Rows):
    """A report that keeps the rows of validations."""

    def evaluation(self, row: dict) -> None:  # type: ignore[override]
        self.rows.append(row)

    def step(self, row: dict, more: dict) -> None:
        """Of no interest here."""


def validated(config) -> tuple[list[tuple[float, int]], list[np.ndarray]]:
    """On a rank: (loss, tokens) of each validation, and on one process alone the summed losses of the samples, each
    of them by itself."""
    folder, kept = _shared_folder(), []

    def report(*args: object) -> KeptEvaluations:
        kept.append(KeptEvaluations(*args))
        return kept[-1]

    told = {"output_dir": folder, "save": folder}
    with (
        patch.object(loop, "Report", report),
        patch.object(step_log, "matmul_peak", lambda *args: 1.0),
    ):
        run = built_run(with_fields(config, told))
        with StopRequest(run.config.training) as stop:
            _Loop(run).run(stop)
    losses = []
    if run.mesh.world.size == 1:
        (chunk,) = run.trainer.chunks
        chunk.eval()
        for number in range(len(run.splits.valid)):
            batch = collate([run.splits.valid[number]], range(1), SEQUENCE, None)
            losses.append((chunk(None, batch).item(), int(batch.loss_mask.sum())))
    run.mesh.close()
    return [(row["loss"], row["tokens"]) for report in kept for row in report.rows], losses


def a_validation_is_over_the_whole_set(folder: Path, layout: str = "one", run=None) -> None:
    """The law: 15 documents of 13 tokens are 195 tokens, of which all but the first are predicted: 13 samples, the last
    one short, in two rounds, the last one short, too."""
    prefix = write(folder / "corpus", [np.arange(13) + place for place in range(DOCUMENTS)])
    config = config_of(**SETTINGS | LAYOUTS[layout], data_path=[prefix])
    alone = config_of(**SETTINGS, data_path=[prefix])
    told, samples = validated(alone)
    if layout != "one":
        told = (run or partial(on_ranks, 2))(validated, config)[0][0]
    tokens = sum(count for _, count in samples)
    assert (len(samples), tokens) == (13, 194)
    assert {count for _, count in told} == {tokens}
    expected = sum(loss for loss, _ in samples) / tokens
    assert [loss for loss, _ in told] == pytest.approx([expected] * len(told), rel=1e-9)
