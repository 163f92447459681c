"""Laws of parts that a user registers; each raises AssertionError where it does not hold."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from megascratch.config.errors import UserError
from megascratch.config.imports import run_imports
from megascratch.config.registry import REGISTERED, names, register
from megascratch.data.samples.build import MockReader
from megascratch.data.samples.own_order import OwnOrder
from megascratch.layers.norm import RMSNorm
from megascratch.training.start.agree import imported_facts
from megascratch.verification.run_layout import gather, one_process, train_on_rank
from tests.support.layout_runs import STEPS, assert_same, config_of
from tests.support.own_parts import ALL_KINDS, SETTINGS
from tests.support.small_models import model_of


@contextmanager
def imported(folder: Path, text: str) -> Iterator[str]:
    """The file that holds the text and was run; what it registers is forgotten afterwards."""
    file = folder / f"parts_{abs(hash(str(folder)))}.py"
    file.write_text(text)
    path = [*sys.path]
    try:
        run_imports([str(file)])
        yield str(file)
    finally:
        sys.path[:] = path
        for table in REGISTERED.values():
            table.clear()


def a_pattern_is_that_of_the_whole_model_on_every_stage(folder: Path, run: Callable) -> None:
    with imported(folder, ALL_KINDS) as source:
        config = config_of(
            normalization="ScaleNorm",
            mixers=["attention", "shift"],
            num_layers=4,
            pipeline_model_parallel_size=2,
            global_batch_size=4,
            imports=[source],
        )
        one = gather([train_on_rank(one_process(config), STEPS)])
        many = gather(run(2, train_on_rank, config, STEPS))
    assert_same(one, many, 1e-9)


def options_reach_their_parts(folder: Path, run: Callable) -> None:
    with imported(folder, ALL_KINDS):
        layers = model_of(config_of(**SETTINGS, num_layers=3)).layers
        assert layers["1"].shift.read.weight.shape[0] == 16, "shift_width is 16"
        assert float(layers["0"].norm1.gain.detach()[0]) == 0.5, "start is 0.5"


def a_part_of_the_package_keeps_its_name(folder: Path, run: Callable) -> None:
    with imported(folder, ALL_KINDS):
        REGISTERED["norm"]["RMSNorm"] = REGISTERED["norm"]["ScaleNorm"]
        norm = model_of(config_of(normalization="RMSNorm", num_layers=1)).layers["0"].norm1
        assert isinstance(norm, RMSNorm), "RMSNorm is that of the package"


def ranks_that_ran_other_code_differ(folder: Path, run: Callable) -> None:
    """Two machines whose files of the same name have other content, one after the other."""
    facts = []
    for text in (ALL_KINDS, ALL_KINDS.replace("0.01", "0.02"), ALL_KINDS):
        with imported(folder, text):
            facts.append(imported_facts())
    assert facts[0] == facts[2], "the same content is the same code"
    assert facts[0] != facts[1], "other content is other code"


def a_changed_file_is_run_again(folder: Path, run: Callable) -> None:
    with imported(folder, ALL_KINDS):
        pass
    with imported(folder, ALL_KINDS.replace('"leaky"', '"leakier"')):
        assert "leakier" in names("activation"), "the new content was run"


def an_order_reads_each_sample_once(folder: Path, run: Callable) -> None:
    try:
        for places in (np.zeros, np.ones):
            register("data_order", "twice")(
                lambda lengths, samples, seed, epoch, places=places: (
                    np.arange(len(lengths)),
                    places(samples, dtype=np.int64),
                )
            )
            order = OwnOrder(MockReader(50, None), 0, 20, name="twice", seq_length=8, seed=1)
            try:
                order[0]
            except UserError as error:
                assert "must read each of" in str(error)
            else:
                raise AssertionError("samples that are left out were not noticed")
    finally:
        REGISTERED["data_order"].clear()
