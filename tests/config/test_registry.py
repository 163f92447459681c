"""Names of a user's own: registered by a file that --import runs, valid wherever a setting names a part."""

import pytest

from megascratch.config.errors import SettingError, UserError
from megascratch.config.load import load_config
from megascratch.config.registry import REGISTERED, look_up, names, register

PARTS = """\
from megascratch.config.registry import register

@register("norm", "ScaleNorm")
class ScaleNorm:
    pass
"""


@pytest.fixture(autouse=True)
def nothing_stays(monkeypatch):
    for table in REGISTERED.values():
        for name in list(table):
            monkeypatch.delitem(table, name)
    yield
    for table in REGISTERED.values():
        table.clear()


def test_a_name_is_valid_once_its_file_is_imported_by_flag_or_yaml(tmp_path):
    parts = tmp_path / "parts.py"
    parts.write_text(PARTS)
    with pytest.raises(SettingError, match=r"invalid choice .ScaleNorm.*LayerNorm, RMSNorm$"):
        load_config(["--normalization", "ScaleNorm"])
    flags = ["--normalization", "ScaleNorm", "--import", str(parts)]
    assert load_config(flags)[0].model.normalization == "ScaleNorm"
    config = tmp_path / "c.yaml"
    config.write_text(f"import: [{parts}]\nnormalization: ScaleNorm\n")
    assert load_config(["--config", str(config)])[0].training.imports == [str(parts)]


def test_look_up_finds_parts_of_the_package_and_registered_ones():
    register("norm", "Mine")(7)
    assert look_up("norm", "Mine", {"RMSNorm": 1}) == 7
    assert look_up("norm", "RMSNorm", {"RMSNorm": 1}) == 1
    assert names("norm") == ("LayerNorm", "RMSNorm", "Mine")
    with pytest.raises(UserError, match="unknown norm Yours: use one of LayerNorm, RMSNorm, Mine"):
        look_up("norm", "Yours", {})


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("norm", "RMSNorm", "the norm RMSNorm comes with megascratch: choose another name"),
        ("layer", "Mine", "nothing of kind layer can be registered: use one of norm, activation"),
    ],
)
def test_what_cannot_be_registered_is_refused(kind, name, message):
    with pytest.raises(UserError, match=message):
        register(kind, name)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.py", None, "--import .*missing.py cannot be run: FileNotFoundError"),
        ("broken.py", "1 / 0", "--import .*broken.py cannot be run: ZeroDivisionError: division"),
        ("no_such_module", None, "--import .*no_such_module cannot be run: ModuleNotFoundError"),
    ],
)
def test_an_import_that_fails_is_named(tmp_path, name, text, message):
    source = tmp_path / name if name.endswith(".py") else name
    if text is not None:
        source.write_text(text)
    with pytest.raises(UserError, match=message):
        load_config(["--import", str(source)])


def test_later_files_override_earlier_ones_and_flags_override_files(tmp_path):
    for name, text in {"a": "lr: 1.0\nseed: 1\n", "b": "lr: 2.0\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    both = load_config(["--config", a, "--config", b])[0]
    assert (both.optim.lr, both.training.seed) == (2.0, 1)
    assert load_config(["--config", b, a])[0].optim.lr == 1.0
    assert load_config(["--config", a, "--lr", "3", "--config", b])[0].optim.lr == 3.0
