"""Whatever is given to a setting is accepted or refused by name in a few lines, without torch, and leaves nothing."""

import pytest

from tests.support.mistakes.table import sweep

GROUPS = ["flags", "yaml", "paths"]


@pytest.fixture(scope="module")
def one_value_of_each(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("sweep") / "world")


@pytest.fixture(scope="module")
def every_value(tmp_path_factory):
    return sweep(tmp_path_factory.mktemp("sweep") / "world", "--all")


@pytest.mark.parametrize("group", GROUPS)
def test_a_wrong_value_of_each_setting_is_refused_by_name(group, one_value_of_each):
    assert one_value_of_each[group] == []


@pytest.mark.deep
@pytest.mark.parametrize("group", GROUPS)
def test_every_wrong_value_of_every_setting_is_refused_by_name(group, every_value):
    assert every_value[group] == []
