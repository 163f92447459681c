"""kill -9 at more than 200 places: named points x ranks x passages, and every write of a save. Each start after a kill
loads the newest checkpoint, and in the end the weights are those of a run that nobody disturbed, bit for bit.
"""

from itertools import product
from pathlib import Path

import pytest

from megascratch.commands import main
from megascratch.runtime.faults import POINTS, VARIABLE
from tests.support.supervised_runs import SMALL, weights

STEPS = 320
LONG = {
    "--train-iters": str(STEPS),
    "--log-interval": "60",
    "--save-interval": "2",
    "--global-batch-size": "8",
    "--keep-last-n-checkpoints": "2",
    "--lr-decay-iters": str(STEPS),
}
PIPELINE = ["--pipeline-model-parallel-size", "2", "--pipeline-schedule", "zb_h1"]
ZERO1 = ["--data-parallel-size", "2", "--use-distributed-optimizer", "--ddp-bucket-size", "4000"]

NOT_IN_TRAINING = ("evaluate", "index", "preprocess")
PIPELINE_ONLY = ("transfer.send", "transfer.receive", "transfer.wait", "weight.begin")
FIRST_RANK_ONLY = (
    "save.before_commit",
    "save.after_commit",
    "save.before_delete",
    "save.mid_delete",
)
ONCE = ("run.begin", "run.meet", "run.built")
LAST = "run.end"  # of each rank in the end: a run that is killed there is complete, and so is each later attempt


def places(pipeline: bool) -> list[str]:
    """Where a rank of this layout is killed: POINT:RANK:NTH."""
    found = []
    for point, rank in product(POINTS, (0, 1)):
        if point.startswith(NOT_IN_TRAINING) or (rank and point in FIRST_RANK_ONLY):
            continue
        if point == LAST:
            continue
        if point in PIPELINE_ONLY and not pipeline:
            continue
        passages = (
            (1,) if point in ONCE else (1, 2) if point.startswith(("save", "step")) else (1, 3)
        )
        found += [f"{point}:{rank}:{nth}" for nth in passages]
    found += [f"save.write:{rank}:{nth}" for rank, nth in product((0, 1), range(3, 12))]
    return found + [f"{LAST}:{rank}:1" for rank in (0, 1)]


def train(folder: Path, *words: str) -> int:
    settings = dict(zip(SMALL[::2], SMALL[1::2], strict=False)) | LONG
    settings.pop("--mock-data", None)
    flags = [word for pair in settings.items() for word in pair]
    return main(
        [
            "pretrain",
            *flags,
            "--mock-data",
            "--output-dir",
            str(folder),
            "--nproc-per-node",
            "2",
            *words,
        ]
    )


@pytest.mark.deep
@pytest.mark.parametrize("layout", [PIPELINE, ZERO1], ids=["pipeline", "zero1"])
def test_a_run_that_is_killed_everywhere_ends_with_the_weights_of_the_undisturbed_one(
    tmp_path, monkeypatch, layout
):
    kills = places(layout is PIPELINE)
    assert train(tmp_path / "calm", *layout) == 0
    monkeypatch.setenv(
        VARIABLE, ",".join(f"{place}:kill:{attempt}" for attempt, place in enumerate(kills))
    )
    assert train(tmp_path / "wild", *layout, "--max-restarts", str(len(kills))) == 0
    reports = sorted((tmp_path / "wild" / "faults").iterdir())
    assert len(reports) == len(kills) > 100
    assert all("was killed by SIGKILL" in report.read_text().splitlines()[0] for report in reports)
    assert weights(tmp_path / "wild", STEPS) == weights(tmp_path / "calm", STEPS) != {}
