"""The scaling examples: each layout is legal for its preset, and a rank fits into the memory that the file states."""

import re
from pathlib import Path

import pytest

from megascratch.config.fields import with_fields
from megascratch.config.layout import Layout
from megascratch.config.load import read_config
from megascratch.dry_run.run import run_rank
from megascratch.dry_run.settings import imagined_run
from megascratch.parallel.grid import Grid

FOLDER = Path(__file__).parents[2] / "examples" / "scaling"
NAMES = ["laptop", "1-gpu", "8-gpus", "64-gpus", "1024-gpus", "16384-gpus", "16384-gpus-long"]
FREE = 0.1  # of the memory: context of the device, libraries, fragmentation
FULLEST = {"16384-gpus": 1}  # stage with the most memory, where it is not the first


def command_of(name: str) -> list[str]:
    """The words of the dry run in the comment of an example, with the path of the file here."""
    text = (FOLDER / f"{name}.yaml").read_text()
    words = re.search(r"#   megascratch dry-run (.*)", text)[1]
    return words.replace(f"examples/scaling/{name}.yaml", str(FOLDER / f"{name}.yaml")).split()


def require_fit(name: str, stages: list[int]) -> None:
    """The example's ranks of these stages leave a tenth of the stated memory free."""
    text = (FOLDER / f"{name}.yaml").read_text()
    words = command_of(name)
    world = int(words[words.index("--world") + 1])
    kind = "cpu" if "cpu" in words else "cuda"
    loaded = read_config(words[: words.index("--world")])
    layout = Layout.of(imagined_run(loaded, world, kind).config.parallel)
    # as many micro-batches as there are stages: the memory of the longer step, in less time
    micro = loaded.config.training.micro_batch_size
    shorter = {"global_batch_size": micro * layout.pp * layout.world // layout.ranks_of_copy}
    loaded = loaded._replace(config=with_fields(loaded.config, shorter))
    run = imagined_run(loaded, world, kind)
    grid = Grid(layout.sizes("dense"))
    stated = [int(number) * 10**9 for number in re.findall(r"(\d+) GB", text)]
    for stage in stages:
        memory = run_rank(run, grid.rank(pp=stage)).memory
        assert memory.peak < (1 - FREE) * stated[0]
        assert memory.host == 0 or memory.host < (1 - FREE) * stated[1]


def test_every_example_is_checked():
    assert sorted(file.stem for file in FOLDER.glob("*.yaml")) == sorted(NAMES)


@pytest.mark.parametrize("name", ["laptop", "1-gpu", "8-gpus", "16384-gpus"])
def test_the_fullest_rank_of_an_example_fits_into_the_memory_that_it_states(name):
    require_fit(name, [FULLEST.get(name, 0)])


@pytest.mark.deep
@pytest.mark.parametrize("name", ["64-gpus", "1024-gpus", "16384-gpus", "16384-gpus-long"])
def test_every_stage_of_an_example_fits_into_the_memory_that_it_states(name):
    loaded = read_config(command_of(name)[:-2])
    require_fit(name, list(range(loaded.config.parallel.pipeline_model_parallel_size)))


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_legal_for_the_ranks_of_its_comment(name):
    words = command_of(name)
    at = words.index("--world")
    kind = "cpu" if "cpu" in words else "cuda"
    config = imagined_run(read_config(words[:at]), int(words[at + 1]), kind).config
    assert config.training.global_batch_size % config.parallel.data_parallel_size == 0
