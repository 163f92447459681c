"""Logs the numbers of a run to Weights & Biases or trackio, which share their calls: init, log, finish.

A resumed run continues there: in Weights & Biases by the id of the run, in trackio, which takes no id, by its name.
"""

from megascratch.training.sinks.sink import RunIdentity
from megascratch.training.words.interface import Row


class WandB:
    """A run of Weights & Biases. Its own variables apply: WANDB_API_KEY, WANDB_MODE=offline, WANDB_ENTITY and so on."""

    def __init__(self, run: RunIdentity):
        import wandb  # an extra, as all libraries of this file

        self._points = run.words.points
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id,
            resume="allow",
            dir=run.folder,
            config=dict(run.config),
        )
        # steps of its own only rise, and a checkpoint or a rollback reports an earlier one
        self._run.define_metric("*", step_metric="step")

    def add(self, row: Row) -> None:
        """Logs the numbers of a row."""
        values = self._points(row).by_step
        if values:
            self._run.log(values | {"step": row["step"]})

    def close(self, exit_code: int) -> str:
        """Ends the run there, with its exit code."""
        self._run.finish(exit_code=exit_code)
        return f"wandb: {self._run.url}" if self._run.url else f"wandb: {self._run.name}"


class Trackio:
    """A run of trackio, which keeps it on this machine (TRACKIO_DIR) unless its variables name a server."""

    def __init__(self, run: RunIdentity):
        import trackio

        self._points = run.words.points
        self._project = run.project
        self._run = trackio.init(
            project=run.project,
            name=run.name,
            resume="allow" if run.first_step else "never",
            config=dict(run.config),
            embed=False,
        )

    def add(self, row: Row) -> None:
        """Logs the numbers of a row."""
        values = self._points(row).by_step
        if values:
            self._run.log(values, step=row["step"])

    def close(self, exit_code: int) -> str:
        """Ends the run there."""
        self._run.finish()
        return f"trackio: trackio show --project {self._project}"
