"""Names of a user's own: registered by a file that --import runs, valid wherever a setting names a part."""

import builtins
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from megascratch.config.errors import SettingError, UserError
from megascratch.config.fields import flat, with_fields
from megascratch.config.imports import import_digests, run_imports
from megascratch.config.laws import validate
from megascratch.config.load import load_config
from megascratch.config.part_options import PartName, options_of
from megascratch.config.registry import facts_of, look_up, names, register
from megascratch.config.resolve import derive
from megascratch.config.resume_effects import Side
from megascratch.config.resume_rules import compare_configs
from megascratch.config.saved import require_parts, require_valid_state
from megascratch.config.settings import Config
from megascratch.tokenizer import Tokenizer

PARTS = """\
from megascratch.config.registry import register

@register("norm", "ScaleNorm")
class ScaleNorm:
    def __init__(self, hidden_size, epsilon, *, bias, grad_sum, start=1.0): ...
    def forward(self, x): ...
"""


def test_a_name_is_valid_once_its_file_is_imported_by_flag_or_yaml(tmp_path):
    parts = tmp_path / "parts.py"
    parts.write_text(PARTS)
    with pytest.raises(SettingError, match=r"LayerNorm, RMSNorm, or give --import with the"):
        load_config(["--normalization", "ScaleNorm"])
    flags = ["--normalization", "ScaleNorm", "--import", str(parts)]
    assert load_config(flags)[0].model.normalization == "ScaleNorm"
    config = tmp_path / "c.yaml"
    config.write_text(f"import: [{parts}]\nnormalization: ScaleNorm\n")
    assert load_config(["--config", str(config)])[0].training.imports == [str(parts)]


def test_look_up_finds_parts_of_the_package_and_registered_ones():
    register("activation", "mine")(len)
    assert look_up("activation", "mine", {"gelu": 1}) is len
    assert look_up("activation", "gelu", {"gelu": 1}) == 1
    assert names("activation")[-2:] == ("quick_geglu", "mine")
    with pytest.raises(
        UserError, match=r"unknown activation yours: use one of gelu,.* quick_geglu, mine"
    ):
        look_up("activation", "yours", {})


class Norm:
    """The smallest thing that looks like a norm."""

    def __init__(self, hidden_size, epsilon, *, bias, grad_sum): ...
    def forward(self, x): ...


class NoForward:
    def __init__(self, hidden_size, epsilon, *, bias, grad_sum): ...


class NoBias:
    def __init__(self, hidden_size, epsilon): ...
    def forward(self, x): ...


class NoContext:
    def __init__(self, model, site): ...
    def forward(self, x): ...


class NoStateNames:
    steps = 0

    def __init__(self, stretches, optim): ...
    def step(self, lr): ...


class TakenName(NoStateNames):
    state_names = ("master",)


class HalfATokenizer(Tokenizer):
    def __init__(self, path): ...
    def decode(self, ids): ...


@pytest.mark.parametrize(
    ("kind", "name", "value", "message"),
    [
        ("norm", "RMSNorm", Norm, "the norm RMSNorm comes with megascratch: choose another name"),
        ("layer", "Mine", Norm, "nothing of kind layer can be registered: use one of norm, activa"),
        ("norm", "2 fast", Norm, "'2 fast' cannot be the name of a norm: use letters, digits, -"),
        ("mixer", "mlp", Norm, "the mixer mlp: another part of a layer has that name"),
        ("mixer", "norm1", Norm, "the mixer norm1: another part of a layer has that name"),
        ("norm", "Mine", len, "the norm Mine must be a class, not builtin_function_or_method"),
        ("norm", "Mine", NoForward, "the norm Mine has no method forward"),
        (
            "norm",
            "Mine",
            NoBias,
            r"the norm Mine must accept Mine\(hidden_size, epsilon, bias=..., grad_sum=...\): got an unexpected",
        ),
        (
            "mixer",
            "mine",
            NoContext,
            "the mixer mine: forward must accept two arguments in addition",
        ),
        ("activation", "mine", 7, "the activation mine must be a function, not int"),
        ("activation", "mine", lambda: 0, r"the activation mine must accept mine\(x\): too many"),
        ("optimizer", "mine", NoStateNames, "the optimizer mine has no state_names: see megas"),
        ("optimizer", "mine", TakenName, r"state_names \(\('master',\)\) must be different names"),
        ("schedule", "mine", lambda rank: 0, r"mine\(rank, ranks, microbatches, chunks, group\)"),
        ("lr_curve", "mine", lambda done, step: 0, "missing a required argument: 'step'"),
        ("data_order", "mine", lambda lengths: 0, r"mine\(lengths, samples, seed, epoch\)"),
        ("tokenizer", "mine", HalfATokenizer, "the tokenizer mine does not define encode_bare"),
        (
            "schedule",
            "mine",
            lambda rank, ranks, microbatches, chunks, group, *, eager: 0,
            "the schedule mine has the parameter eager: give it a default",
        ),
    ],
)
def test_what_cannot_be_registered_is_refused(kind, name, value, message):
    with pytest.raises(UserError, match=message):
        register(kind, name)(value)


def test_a_fact_that_means_nothing_for_a_kind_is_refused():
    with pytest.raises(UserError, match="the norm Mine: chunks means nothing here: remove it"):
        register("norm", "Mine", chunks=2)
    with pytest.raises(UserError, match="bend means nothing here: use chunks, folded"):
        register("schedule", "mine", bend=1)


def test_a_v_has_two_chunks_and_a_schedule_has_one_unless_it_says_so():
    register("schedule", "v", folded=True)(lambda rank, ranks, microbatches, chunks, group: [])
    register("schedule", "line")(lambda rank, ranks, microbatches, chunks, group: [])
    assert facts_of("schedule", "v") == {"chunks": 2, "folded": True}
    assert facts_of("schedule", "line") == facts_of("schedule", "1f1b")
    assert facts_of("schedule", "line") == {"chunks": 1, "folded": False}
    assert facts_of("schedule", "zb_v")["folded"]
    config = load_config(["--pipeline-schedule", "v", "--pipeline-model-parallel-size", "2"])[0]
    assert derive(flat(config), 2)["num_virtual_stages_per_pipeline_rank"] == 2


def test_a_gated_activation_has_the_width_of_a_gate():
    register("activation", "tanhglu", inputs=2)(len)
    own = derive(flat(load_config(["--activation-function", "tanhglu"])[0]), 1)["ffn_hidden_size"]
    known = [derive(flat(load_config(flags)[0]), 1)["ffn_hidden_size"] for flags in GATES]
    assert known == [own, own, 4 * 768]


GATES = [["--activation-function", "swiglu"], ["--swiglu"], ["--activation-function", "gelu"]]


# ---- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ([], {}),
        (["slope=0.5", "steps=3"], {"slope": 0.5, "steps": 3}),
        (["hard=true", "mode=a=b"], {"hard": True, "mode": "a=b"}),
        (["free=1e-3"], {"free": 1e-3}),
        (["free=word"], {"free": "word"}),
    ],
)
def test_an_option_has_the_type_of_its_default(given, found):
    @register("activation", "mine")
    def mine(x, *, slope=1.0, steps=1, hard=False, mode="", free=None): ...

    assert dict(options_of(PartName("activation", "mine"), given)) == found


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (
            ["need=1", "slope=steep"],
            "slope of the activation mine must be a number like its default",
        ),
        (["need=1", "steps=1.5"], "steps of the activation mine must be a whole number"),
        (
            ["need=1", "hard=1"],
            "hard of the activation mine must be true or false like its default",
        ),
        (["need=1", "slope=nan"], "must be a number like its default 1.0, not 'nan'"),
        ([], "the activation mine needs the option need: give need=VALUE"),
        (["need=1", "need=2"], "layer-options gives need twice: give it once"),
        (
            ["need=1", "slop=2"],
            r"slop is not an option of the parts in use \(LayerNorm, mine\); they have",
        ),
    ],
)
def test_an_option_that_cannot_be_used_is_refused_with_the_settings(given, problem):
    @register("activation", "mine")
    def mine(x, *, need, slope=1.0, steps=1, hard=False): ...

    config = load_config(["--activation-function", "mine", "--mock-data", "--vocab-size", "9"])[0]
    settings = flat(config) | {"train_iters": 1, "layer_options": given or None}
    with pytest.raises(SettingError, match=problem):
        validate(settings, 1)


# ---- files and modules -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.py", None, "--import missing.py cannot be run: there is no such file"),
        ("broken.py", "x = 1\n1 / 0\n", "broken.py:2: ZeroDivisionError: division by zero$"),
        ("syntax.py", "x = 1\ndef f(:\n", "syntax.py:2: invalid syntax$"),
        ("leaves.py", "import sys\nsys.exit('bye')\n", "leaves.py:2: SystemExit: bye$"),
        (
            "shape.py",
            PARTS.replace("forward", "backward"),
            "shape.py:3: the norm ScaleNorm has no method forward$",
        ),
        ("deep.py", "import broken_neighbour\n", "broken_neighbour.py:1: NameError: name 'y' is"),
        ("no_such_module", None, "there is no such module here or among the installed packages"),
        ("notes.txt", "hello", "notes.txt cannot be run: it is not a Python file"),
    ],
)
def test_an_import_that_fails_names_the_users_own_line(tmp_path, monkeypatch, name, text, message):
    monkeypatch.chdir(tmp_path)
    Path("broken_neighbour.py").write_text("y\n")
    if text is not None:
        Path(name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load_config(["--import", name])
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_may_import_its_neighbours_and_runs_again_only_when_one_has_changed(
    tmp_path, monkeypatch
):
    """As in a notebook: the digest is that of all files that were run."""
    main, neighbour = tmp_path / "main_parts.py", tmp_path / "parts_next_door.py"
    main.write_text("from parts_next_door import runs\nruns.append(1)\n")
    neighbour.write_text("import builtins\nruns = builtins.seen_runs\n")
    monkeypatch.setattr(builtins, "seen_runs", [], raising=False)
    run_imports([str(main)])
    first = import_digests()[str(main)]
    run_imports([str(main)])
    assert (builtins.seen_runs, import_digests()[str(main)]) == ([1], first)
    neighbour.write_text("import builtins\nruns = builtins.seen_runs  # changed\n")
    run_imports([str(main)])
    assert builtins.seen_runs == [1, 1]
    assert import_digests()[str(main)] != first


def test_a_module_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "folder_of_parts").mkdir()
    (tmp_path / "folder_of_parts" / "__init__.py").write_text(PARTS)
    monkeypatch.chdir(tmp_path)
    flags = ["--import", "folder_of_parts", "--normalization", "ScaleNorm"]
    assert load_config(flags)[0].training.imports == ["folder_of_parts"]


def test_an_installed_package_is_loaded_only_for_a_name_that_it_has(tmp_path, monkeypatch):
    """A real distribution on the path: its entry points, and a module that says when it is run."""
    info = tmp_path / "shop_of_norms-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-of-norms\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[megascratch.norm]\nScaleNorm = shop_of_norms:ScaleNorm\nBadNorm = shop_of_norms:gone\n"
    )
    (tmp_path / "shop_of_norms.py").write_text(PARTS.replace('@register("norm", "ScaleNorm")', ""))
    monkeypatch.syspath_prepend(str(tmp_path))
    load_config(["--normalization", "RMSNorm"])
    assert "shop_of_norms" not in sys.modules
    assert load_config(["--normalization", "ScaleNorm"])[0].model.normalization == "ScaleNorm"
    assert import_digests()["norm ScaleNorm"] == "shop-of-norms 1.2"
    with pytest.raises(
        UserError, match=r"BadNorm of the package shop-of-norms 1.2 cannot be loaded"
    ):
        load_config(["--normalization", "BadNorm"])


def test_a_checkpoint_can_be_read_without_the_code_of_its_parts_but_its_model_needs_it():
    config = with_fields(Config(), {"normalization": "ScaleNorm", "mixers": ["attention", "shift"]})
    require_valid_state({"config": asdict(config), "imports": {"a/my_layers.py": "0123"}})
    message = (
        r"^this model needs the norm ScaleNorm and the mixer shift: give --import with the file that registers it "
        r"\(the run imported my_layers.py\)$"
    )
    with pytest.raises(UserError, match=message):
        require_parts(config.model, {"a/my_layers.py": "0123"})
    register("norm", "ScaleNorm")(Norm)
    with pytest.raises(UserError, match=r"^this model needs the mixer shift: give --import"):
        require_parts(config.model, {})


def test_code_that_changed_since_the_checkpoint_is_a_notice():
    before = Side({}, imports={"old/place/parts.py": "aaaa", "norm X": "shop 1.0"})
    for digest, notices in {"aaaa": 0, "bbbb": 1}.items():
        verdict = compare_configs(before, Side({}, imports={"parts.py": digest, "new.py": "1"}), 0)
        assert (len(verdict.notices), verdict.refusals) == (notices, [])
    assert "--import parts.py has changed since the checkpoint: it was aaaa" in verdict.notices[0]


def test_later_files_override_earlier_ones_and_flags_override_files(tmp_path):
    for name, text in {"a": "lr: 1.0\nseed: 1\n", "b": "lr: 2.0\n"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    a, b = str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")
    both = load_config(["--config", a, "--config", b])[0]
    assert (both.optim.lr, both.training.seed) == (2.0, 1)
    assert load_config(["--config", b, a])[0].optim.lr == 1.0
    assert load_config(["--config", a, "--lr", "3", "--config", b])[0].optim.lr == 3.0
