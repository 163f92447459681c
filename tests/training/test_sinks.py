"""Where else the numbers of a run go: each sink gets every row, and none stops the run."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest

from megascratch.commands import main
from megascratch.config import registry
from megascratch.training.sinks import sink as sink_module
from megascratch.training.sinks.sink import NEEDED, missing_libraries
from megascratch.training.words.megascratch import numbers
from tests.support.pretrain_runs import mock
from tests.support.sinks import report_to

TRAIN = {"step": 2, "loss": 2.0, "grad_norm": None, "wall": {"steps": 1.0}, "time": 1.5, "flag": True}  # fmt: skip
VALID = {"step": 2, "split": "valid", "loss": 0.0, "tokens": 8}
SAVE = {"step": 1, "event": "save", "bytes": 7}


class Calls(ModuleType):
    """Stands in for wandb and trackio: keeps what init, log and finish are given."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.inits: list[dict] = []
        self.logged: list[tuple] = []
        self.finished: list[dict] = []
        self.error: Exception | None = None

    def init(self, **arguments: object) -> SimpleNamespace:
        self.inits.append(arguments)
        return SimpleNamespace(
            log=self.log,
            finish=lambda **more: self.finished.append(more),
            define_metric=lambda *names, **more: None,
            url="https://there/run",
            name="the run",
        )

    def log(self, values: dict, step: int | None = None) -> None:
        if self.error is not None:
            raise self.error
        self.logged.append((values, step))


@pytest.fixture(params=["wandb", "trackio"])
def tracker(request, monkeypatch):
    module = Calls(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def test_the_numbers_of_a_row_have_tags_and_nothing_else_is_a_number():
    assert numbers(TRAIN) == {"train/loss": 2.0}
    assert numbers(VALID) == {"valid/loss": 0.0, "valid/tokens": 8, "valid/perplexity": 1.0}
    assert numbers(SAVE) == {"save/bytes": 7}


def test_a_tracker_gets_every_row_and_knows_the_run_again(tracker, tmp_path, capsys):
    for first_step in (0, 4):
        report = report_to([tracker.__name__], tmp_path, first_step)
        report.note(VALID)
        report.note(SAVE)
        report.close({"exit_code": 0})
    seen = []
    for values, step in tracker.logged:
        seen.append((values.pop("step") if step is None else step, values))
    assert seen == [(2, numbers(VALID)), (1, numbers(SAVE))] * 2
    first, second = tracker.inits
    assert first["project"] == "the project" and first["config"]["lr"] == 0.1
    if tracker.__name__ == "wandb":
        assert (first["id"], first["resume"]) == (second["id"], "allow") == ("abc123", "allow")
    else:
        assert (first["name"], first["resume"]) == ("the run", "never")
        assert (second["name"], second["resume"]) == ("the run", "allow")
    assert len(tracker.finished) == 2
    assert f"{tracker.__name__}: " in capsys.readouterr().out


def test_a_tracker_that_fails_is_reported_once_and_the_run_and_the_others_continue(
    tracker, tmp_path, capsys
):
    other = []

    @registry.register("sink", "other")
    class Other:
        def __init__(self, run):
            assert run.name == "the run"

        def add(self, row):
            other.append(row)

        def close(self, code):
            return f"other: {code}"

    try:
        report = report_to([tracker.__name__, "other"], tmp_path)
        report.note(SAVE)
        tracker.error = ConnectionError("the server is gone")
        report.note(VALID)
        report.note(VALID)
        report.close({"exit_code": 80})
    finally:
        del registry.REGISTERED["sink"]["other"]
    said = capsys.readouterr().out
    assert said.count(f"nothing more is logged to {tracker.__name__}") == 1
    assert "ConnectionError: the server is gone; training continues" in said
    assert other == [SAVE, VALID, VALID] and said.splitlines()[-1].endswith("other: 80")
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_tracker_that_cannot_begin_stops_nothing(tracker, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tracker, "init", lambda **_: 1 / 0)
    assert main(mock(tmp_path, log_to=tracker.__name__, exit_interval=1)) == 80
    assert capsys.readouterr().out.count("ZeroDivisionError") == 1


def test_a_run_gives_its_tracker_its_settings_its_name_and_its_end(tracker, tmp_path):
    name = tracker.__name__
    assert main(mock(tmp_path / "mine", log_to=name, log_project="p", exit_interval=2)) == 80
    (begun,) = tracker.inits
    assert (begun["project"], begun["name"]) == ("p", "mine")
    assert begun["config"]["lr"] == 0.01 and begun["config"]["hidden_size"] == 32
    assert any("train/loss" in values for values, _ in tracker.logged)
    assert tracker.finished == [{"exit_code": 80} if name == "wandb" else {}]


@pytest.mark.parametrize("name", sorted(NEEDED))
def test_an_absent_library_is_named_with_its_command_before_any_work(
    name, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sink_module, "find_spec", lambda module: None)
    assert main(mock(tmp_path / "run", log_to=name)) == 2
    said = capsys.readouterr().err
    assert f"--log-to {name} needs" in said and f"pip install 'megascratch[{name}]'" in said
    assert len(said.splitlines()) == 1 and not (tmp_path / "run").exists()


def test_a_library_whose_package_is_absent_is_absent():
    assert missing_libraries(["tensorboard", "none"]) == []
    found = sink_module._is_installed("no_such_package.inside.it")
    assert found is False


def test_a_run_that_logs_nowhere_else_writes_no_events(tmp_path):
    words = mock(tmp_path, log_to="none", train_iters=1, lr_decay_iters=1, lr_warmup_iters=0)
    assert main(words) == 0
    assert not (tmp_path / "tensorboard").exists() and (tmp_path / "metrics.jsonl").exists()


def test_tensorboard_has_the_settings_as_a_text_and_the_perplexity(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = report_to(["tensorboard"], tmp_path)
    report.note(VALID)
    report.close({"exit_code": 0})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [point.value for point in events.Scalars("valid/perplexity")] == [1.0]
    (text,) = events.Tensors("settings/text_summary")
    assert b"lr: 0.1" in text.tensor_proto.string_val[0]


def test_trackio_itself_keeps_the_rows_of_a_run_and_of_its_resume(tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    for module in list(sys.modules.values()):
        if getattr(module, "TRACKIO_DIR", None) is not None:
            monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "kept")
    assert trackio is not None
    for first_step in (0, 4):
        report = report_to(["trackio"], tmp_path, first_step)
        report.note(VALID)
        report.close({"exit_code": 0})
    kept = storage.get_logs("the project", "the run")
    assert [row["step"] for row in kept] == [2, 2]
    assert [row["valid/loss"] for row in kept] == [0.0, 0.0]


def test_opentelemetry_itself_exports_the_newest_numbers(tmp_path, monkeypatch):
    exporter = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.metric_exporter")
    exported = []

    def export(self, metrics_data, *args, **more):
        exported.append(metrics_data)
        return pytest.importorskip("opentelemetry.sdk.metrics.export").MetricExportResult.SUCCESS

    monkeypatch.setattr(exporter.OTLPMetricExporter, "export", export)
    report = report_to(["otel"], tmp_path)
    report.note(TRAIN)
    report.note(TRAIN | {"step": 3, "loss": 1.5})
    report.close({"exit_code": 0})
    (resource,) = exported[-1].resource_metrics
    assert resource.resource.attributes["megascratch.run"] == "the run"
    values = {}
    for metric in resource.scope_metrics[0].metrics:
        values[metric.name] = metric.data.data_points[0].value
    assert values == {"megascratch.train.loss": 1.5, "megascratch.step": 3}
