import pytest

from megascratch.commands import main
from megascratch.config import exit_codes
from megascratch.config.errors import UserError
from megascratch.runtime.launch_environment import NAMES, LaunchEnvironment, launch_environment

TORCHRUN = {
    "RANK": "6",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "2",
    "LOCAL_WORLD_SIZE": "4",
    "TORCHELASTIC_RESTART_COUNT": "3",
}


def figures(environment):
    """All that the environment says: rank, world size, local rank, local world size, attempt."""
    return (
        environment.rank,
        environment.world_size,
        environment.local_rank,
        environment.local_world_size,
        environment.attempt,
    )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, (0, 1, 0, None, 0)),
        (TORCHRUN, (6, 8, 2, 4, 3)),
        ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": ""}, (1, 2, 0, None, 0)),
    ],
)
def test_every_variable_has_its_own_figure_and_none_is_needed(variables, expected):
    assert figures(LaunchEnvironment(variables)) == expected


def test_the_environment_is_read_at_each_question(monkeypatch):
    environment = launch_environment()
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert figures(environment) == figures(launch_environment()) == (6, 8, 2, 4, 3)
    monkeypatch.setenv("RANK", "7")
    assert environment.rank == 7


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "verb", [["pretrain", "--num-layers", "0"], ["doctor"]], ids=lambda verb: verb[0]
)
def test_a_variable_that_is_not_a_number_is_refused_before_anything_starts(
    monkeypatch, capsys, verb, name
):
    monkeypatch.setenv(name, "first")
    assert main(verb) == exit_codes.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(
        f"{name} is 'first', which is not a number: start with --nproc-per-node or torchrun, or unset {name}"
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"RANK": "8"}, "RANK is 8, but WORLD_SIZE is 8, so it must be from 0 to 7"),
        ({"RANK": "-1"}, "RANK is -1, but WORLD_SIZE is 8, so it must be from 0 to 7"),
        ({"LOCAL_RANK": "4"}, "LOCAL_RANK is 4, but LOCAL_WORLD_SIZE is 4, so it must be from 0"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is 0, but must be at least 1"),
    ],
)
def test_a_rank_outside_its_world_is_refused_with_both_numbers(changes, told):
    LaunchEnvironment(TORCHRUN).check()
    with pytest.raises(UserError, match=f"^{told}"):
        LaunchEnvironment({**TORCHRUN, **changes}).check()
