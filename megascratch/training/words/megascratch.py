"""Our own words: `step 10/100 | loss 4.1234 | ...` and tags such as train/loss."""

import math

from megascratch.training.time_split import clock
from megascratch.training.words.interface import Points, Row


class OwnWords:
    """One line for each log interval, with means over its steps.

    Args:
        total_steps: of the run.
    """

    each_step = False

    def __init__(self, total_steps: int):
        self.total = total_steps

    def begin(self) -> str:
        """Nothing: the headline says it."""
        return ""

    def log_line(self, row: Row, seconds_left: float) -> str:
        """`step 10/100 | loss 4.1234 | grad norm 1.234 | ...`."""
        figures = [
            f"step {row['step']:>6}/{self.total}",
            f"loss {number(row['loss'], '.4f')}",
            *_side_losses(row),
            f"grad norm {number(row['grad_norm'], '.3f')}",
        ]
        if "params_norm" in row:
            figures.append(f"params norm {number(row['params_norm'], '.3f')}")
        if "num_zeros" in row:
            figures.append(f"zeros in gradient {number(row['num_zeros'], ',')}")
        figures += [
            f"lr {row['learning_rate']:.3e}",
            f"{row['tokens_per_second']:,.0f} tokens/s",
            f"MFU {row['mfu']:.1%}",
            f"memory {row['memory_bytes'] / 2**30:.2f} GiB",
            *_waits(row),
            f"left {clock(seconds_left)}",
        ]
        if "loss_scale" in row:
            figures.append(f"overflowed {row['skipped_steps']}, loss scale {row['loss_scale']:g}")
        if row.get("steps_without_tokens"):
            figures.append(f"{row['steps_without_tokens']} without a token to learn")
        return " | ".join(figures)

    def evaluation(self, row: Row) -> str:
        """`step 10 | valid loss 4.1234 | perplexity 61.77 | 1,024 tokens`."""
        loss = row["loss"]
        side_losses = "".join(f" | {figure}" for figure in _side_losses(row))
        return (
            f"step {row['step']:>6} | {row['split']} loss {number(loss, '.4f')} | "
            f"perplexity {number(None if loss is None else perplexity(loss), '.2f')} | "
            f"{row['tokens']:,} tokens{side_losses}"
        )

    def event(self, row: Row, text: str) -> str:
        """The text as it is."""
        return text

    def end(self, step: int, stopped_early: bool) -> str:
        """Nothing: the summary says it."""
        return ""

    def points(self, row: Row) -> Points:
        """Tags such as train/loss."""
        return Points(numbers(row), {}, 0)


def numbers(row: Row) -> dict[str, float]:
    """The numbers of a row by tag, such as train/loss, valid/perplexity or save/bytes."""
    kind = row.get("event") or row.get("split", "train")
    found: dict[str, float] = {}
    for name, value in row.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and name not in ("step", "time"):
            found[f"{kind}/{name}"] = value
    loss = row.get("loss")
    if loss is not None and "split" in row:
        found[f"{kind}/perplexity"] = perplexity(loss)
    return found


def perplexity(loss: float) -> float:
    """exp(loss), at most about 1e304."""
    return math.exp(min(loss, 700))


def number(value: float | None, form: str) -> str:
    """A number in its format; a dash if there is none."""
    return "-" if value is None else format(value, form)


def _side_losses(row: Row) -> list[str]:
    """The losses of the side terms, which have columns of their own: NAME_loss."""
    figures = []
    for column, value in row.items():
        if column.endswith("_loss"):
            figures.append(f"{column.removesuffix('_loss')} loss {number(value, '.4f')}")
    return figures


def _waits(row: Row) -> list[str]:
    """The shares of the step in which this rank computes nothing; below half a percent they are left out."""
    shares = {"data": row.get("data_share", 0.0), "comm": row.get("communication_share", 0.0)}
    return [f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005]
