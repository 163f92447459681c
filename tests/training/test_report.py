"""What a run tells: every row once."""

import json

from megascratch.training.report import Report


def test_a_run_that_is_done_and_starts_again_writes_no_validation_twice(tmp_path):
    row = {"step": 8, "split": "valid", "loss": 3.5, "tokens": 64}
    for first_step in (0, 8):
        report = Report(str(tmp_path), str(tmp_path), 8, first_step)
        report.evaluation(row)
        report.evaluation(row | {"split": "test"})
        report.close({})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows == [row, row | {"split": "test"}]
