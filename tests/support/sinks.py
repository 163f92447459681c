"""Reports that also log to sinks, for tests."""

from pathlib import Path

from megascratch.training.report import Report
from megascratch.training.sinks.chosen import chosen_sinks
from megascratch.training.sinks.sink import RunIdentity


def report_to(names: list[str], folder: Path, first_step: int = 0) -> Report:
    """A report into a folder, with these sinks."""
    report = Report(str(folder), "a run", 50, first_step)
    identity = RunIdentity(
        project="the project",
        name="the run",
        id="abc123",
        folder=str(folder),
        tensorboard_dir=str(folder / "tensorboard"),
        config={"lr": 0.1, "log_to": names},
        config_text="optim:\n  lr: 0.1",
        first_step=first_step,
        words=report.words,
    )
    report.sinks = chosen_sinks(names, identity, report.say)
    return report
