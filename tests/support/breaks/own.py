"""Breaks of registered parts: name -> replacements, and the law of `own_part_laws.py` that must notice."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist

from megascratch.config import imports, layers
from megascratch.config.registry import REGISTERED
from megascratch.data.samples.own_order import OwnOrder
from megascratch.layers import norm
from megascratch.model import chunk, table
from megascratch.training.start import agree
from tests.support.own_part_laws import (
    a_changed_file_is_run_again,
    a_part_of_the_package_keeps_its_name,
    a_pattern_is_that_of_the_whole_model_on_every_stage,
    an_order_reads_each_sample_once,
    options_reach_their_parts,
    ranks_that_ran_other_code_differ,
)

Law = Callable[[Path, Callable], None]
plain_layers_of = layers.layers_of
plain_look_up = norm.look_up


def one_further_on_later_stages(model):
    specs = plain_layers_of(model)
    later = dist.is_initialized() and dist.get_rank() > 0
    return (*specs[1:], specs[0]) if later else specs


def registered_first(kind, name, built_in):
    if name in REGISTERED[kind]:
        return REGISTERED[kind][name].value
    return plain_look_up(kind, name, built_in)


BREAKS: dict[str, tuple[list[tuple[Any, str, Any]], Law]] = {
    "a pattern of layers is one further on later stages": (
        [
            (chunk, "layers_of", one_further_on_later_stages),
            (table, "layers_of", one_further_on_later_stages),
        ],
        a_pattern_is_that_of_the_whole_model_on_every_stage,
    ),
    "options of registered layers are dropped": (
        [(layers, "options_of", lambda part, given: ())],
        options_reach_their_parts,
    ),
    "a registered name wins over that of the package": (
        [(norm, "look_up", registered_first)],
        a_part_of_the_package_keeps_its_name,
    ),
    "ranks do not compare imported code": (
        [(agree, "import_digests", dict)],
        ranks_that_ran_other_code_differ,
    ),
    "the digest of imported code is that of its name": (
        [(imports, "_digest", lambda file: file.name)],
        ranks_that_ran_other_code_differ,
    ),
    "a file that has changed is not run again": (
        [(imports, "_changed", lambda name: False)],
        a_changed_file_is_run_again,
    ),
    "an order of samples is not checked": (
        [(OwnOrder, "_permutation", lambda self, found, count, what: np.asarray(found))],
        an_order_reads_each_sample_once,
    ),
}
