"""The context of a forward that is tested without a batch: whole samples, each one document."""

import torch

from megascratch.layers.context import ForwardContext
from megascratch.layers.visible import Visible


def plain_context(s: int, samples: torch.Tensor, starts=None, **more) -> ForwardContext:
    """Of samples of s tokens; `starts` [b, s] where documents begin; `more` sets fields."""
    places = torch.arange(s)
    fields = {
        "samples": samples,
        "positions": places.expand(len(samples), s),
        "sample_positions": places,
        "sample_length": s,
        "real": torch.ones(len(samples), s, dtype=torch.bool),
        "visible": Visible(places, places, starts, in_order=True),
    }
    return ForwardContext(**{**fields, **more})


def next_tokens(ids: torch.Tensor, first: int, **more) -> ForwardContext:
    """Of generation: ids [b, n] are the tokens from `first` on, and see all before them."""
    columns = torch.arange(first + ids.shape[1])
    newest = columns[first:]
    return plain_context(
        len(columns),
        torch.arange(len(ids)),
        positions=newest.expand(ids.shape),
        sample_positions=newest,
        real=torch.ones(ids.shape, dtype=torch.bool),
        visible=Visible(newest, columns, None, in_order=False),
        **more,
    )
