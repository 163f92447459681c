"""Reports how many samples and epochs each corpus contributes to a blend (`megascratch data blend-report`)."""

from typing import NamedTuple

import numpy as np

from megascratch.data.samples.dataset import Dataset, SingleSourceDataset
from megascratch.data.samples.fill_in_middle import FillInMiddle
from megascratch.data.samples.megatron_order import MegatronBlend
from megascratch.data.samples.views import Blend, Curriculum


class BlendShare(NamedTuple):
    """What one corpus contributes to one stage."""

    first: int
    """First sample of the stage."""
    corpus: str
    weight: float
    samples: int
    tokens: int
    epochs: tuple[float, float]
    """How often the corpus was read by the beginning and by the end of the stage."""
    largest_error: float
    """Largest difference, in samples, between what the corpus gave and its share, over all prefixes of the stage."""


def blend_report(dataset: Dataset, samples: int, seq_length: int) -> list[BlendShare]:
    """What each corpus contributes to the first `samples` samples of a training set, stage by stage."""
    report = []
    for first, stop, blend in _stages(dataset, samples):
        errors = _largest_errors(blend, stop - first)
        counts = blend.taken(stop - first)
        for at in np.flatnonzero(blend.weights > 0).tolist():
            part = blend.parts[at]
            assert isinstance(part, SingleSourceDataset)
            begin = int(blend.starts[at])
            taken = int(counts[at])
            share = BlendShare(
                first=first,
                corpus=part.source.prefix,
                weight=float(blend.weights[at]),
                samples=taken,
                tokens=taken * seq_length,
                epochs=(begin / len(part), (begin + taken) / len(part)),
                largest_error=errors[at],
            )
            report.append(share)
    return report


def _stages(dataset: Dataset, samples: int) -> list[tuple[int, int, Blend]]:
    """(first sample, last + 1, blend) of each stage that begins before `samples`."""
    if isinstance(dataset, FillInMiddle):
        return _stages(dataset.parts[0], samples)
    if isinstance(dataset, Curriculum):
        stages = []
        stops = [*dataset.firsts[1:], samples]
        for stage, (first, stop) in enumerate(zip(dataset.firsts, stops, strict=True)):
            if first < samples:
                stages.append((first, min(stop, samples), dataset.blend(stage)))
        return stages
    if isinstance(dataset, MegatronBlend):
        return [(0, samples, dataset.blend)]
    if isinstance(dataset, Blend):
        return [(0, samples, dataset)]
    return [(0, samples, Blend([dataset], [1.0], finite=False))]


def _largest_errors(blend: Blend, samples: int) -> list[float]:
    """For each dataset the largest |given - weight x n| over the first n = 1 ... `samples` samples."""
    given = np.zeros(len(blend.parts), dtype=np.int64)
    worst = [0.0] * len(blend.parts)
    done = 0
    for block in blend.choices(samples):
        numbers = np.arange(done + 1, done + len(block) + 1)
        for part, weight in enumerate(blend.weights):
            so_far = given[part] + np.cumsum(block == part)
            errors = np.abs(so_far - weight * numbers)
            worst[part] = max(worst[part], float(errors.max()))
            given[part] = so_far[-1]
        done += len(block)
    return worst
