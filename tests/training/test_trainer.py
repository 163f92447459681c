"""A trainer's state moves from one trainer to another, on the same layout to the last bit and between layouts; and a
request to stop becomes one decision of all ranks."""

import gc
import signal
import threading
import time
import weakref

import pytest
import torch

from megascratch.config import exit_codes
from megascratch.config.errors import UserError
from megascratch.config.settings import Config, OptimConfig, TrainingConfig
from megascratch.parallel.axis import Axis
from megascratch.parallel.mesh import Mesh
from megascratch.supervision.launch import BEGAN
from megascratch.training import stop as stopping
from megascratch.training.hardware import choose_device, matmul_peak, parameter_dtype, peak_memory
from megascratch.training.state import TrainState
from megascratch.training.stop import StopRequest, remove_stop_file
from megascratch.training.trainer import Trainer
from megascratch.verification import run_layout
from tests.support.layout_runs import config_of, synthetic_batch
from tests.support.rank_pool import mesh_of, on_ranks
from tests.support.trainers import build_trainer, load_and_train, train_and_save, train_steps

LAYOUTS = {
    "one": {},
    "tp2 sp": {"tensor_model_parallel_size": 2, "sequence_parallel": True},
    "dp2 zero1": {"data_parallel_size": 2, "use_distributed_optimizer": True},
    "pp2 interleaved": {
        "pipeline_model_parallel_size": 2,
        "num_virtual_stages_per_pipeline_rank": 2,
    },
    "tp2 pp2 zero1": {
        "tensor_model_parallel_size": 2,
        "pipeline_model_parallel_size": 2,
        "use_distributed_optimizer": True,
    },
}
DROPOUT = {"hidden_dropout": 0.1, "attention_dropout": 0.1, "global_batch_size": 4}


def world_of(layout: str) -> int:
    return run_layout.world_of(config_of(**LAYOUTS[layout]).parallel)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "precision", [{"fp64": False}, {"fp64": False, "bf16": True}], ids=["fp32", "bf16"]
)
def test_a_new_trainer_on_the_same_layout_goes_on_to_the_last_bit(tmp_path, layout, precision):
    config, world = config_of(**DROPOUT, **precision, **LAYOUTS[layout]), world_of(layout)
    undisturbed = on_ranks(world, train_and_save, config, str(tmp_path))
    resumed = on_ranks(world, load_and_train, config, str(tmp_path / "step_00000002"))
    for (told, tensors), (told_again, tensors_again) in zip(undisturbed, resumed, strict=True):
        assert told == told_again
        assert all(torch.equal(a, b) for a, b in zip(tensors, tensors_again, strict=True))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("one", "tp2 pp2 zero1"),
        ("tp2 sp", "pp2 interleaved"),
        ("dp2 zero1", "tp2 sp"),
        ("tp2 pp2 zero1", "one"),
    ],
)
def test_a_trainer_on_another_layout_goes_on_with_the_same_numbers(tmp_path, first, second):
    before, after = (config_of(**DROPOUT, **LAYOUTS[layout]) for layout in (first, second))
    told = on_ranks(world_of(first), train_and_save, before, str(tmp_path))[0][0]
    for told_there, _ in on_ranks(world_of(second), load_and_train, after, str(tmp_path)):
        assert told_there == [pytest.approx(step, rel=1e-9) for step in told]


def loss_on_every_rank(config: Config) -> tuple[float, list[float]]:
    trainer = build_trainer(config)
    (played,) = train_steps(trainer, TrainState(), 1)
    batches = [synthetic_batch(config, range(50 + m, 51 + m)) for m in range(2)]
    return played.loss, trainer.evaluate(batches)[0].tolist()


@pytest.mark.parametrize("layout", ["tp2 sp", "pp2 interleaved", "tp2 pp2 zero1"])
def test_every_rank_can_tell_the_global_loss(layout):
    """Law 9: the first rank prints it, whichever stage computed it."""
    one = loss_on_every_rank(config_of(**DROPOUT))
    for loss, evaluated in on_ranks(
        world_of(layout), loss_on_every_rank, config_of(**DROPOUT, **LAYOUTS[layout])
    ):
        assert loss == pytest.approx(one[0], rel=1e-12) and evaluated == pytest.approx(
            one[1], rel=1e-12
        )


@pytest.mark.parametrize("kind", [{}, {"use_distributed_optimizer": True}], ids=["ddp", "zero1"])
def test_a_trainer_that_is_given_up_frees_its_weights_and_so_the_groups_that_its_layers_hold(kind):
    """A process that trains one layout after another would otherwise gather a thread per gloo group."""
    trainer = Trainer(config_of(**kind), Mesh.alone())
    train_steps(trainer, TrainState(), 1)
    held = [weakref.ref(trainer.chunks[0]), weakref.ref(trainer.data_parallel)]
    del trainer
    gc.collect()
    assert [ref() for ref in held] == [None, None]


def test_a_gradient_that_is_not_finite_stops_before_the_weights_move():
    trainer = build_trainer(config_of())
    weight = trainer.chunks[0].head.weight
    weight.data[0, 0] = torch.inf
    before = weight.detach().clone()
    with pytest.raises(FloatingPointError, match="at step 1: nothing was updated"):
        train_steps(trainer, TrainState(), 1)
    assert torch.equal(weight, before)


def stop_of_one(asked: int) -> int:
    mesh = mesh_of(dp=2)
    stop = StopRequest(TrainingConfig())
    try:
        stop.asked = exit_codes.PREEMPTED if mesh.rank == asked else 0
        return stop.agreed(mesh.world, mesh.device)
    finally:
        stop.release()


@pytest.mark.parametrize(
    ("asked", "agreed"), [(0, exit_codes.PREEMPTED), (1, exit_codes.PREEMPTED), (-1, 0)]
)
def test_one_rank_that_is_asked_to_stop_stops_all(asked, agreed):
    assert on_ranks(2, stop_of_one, asked) == [agreed, agreed]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 83),
        (signal.SIGUSR1, 83),
        (signal.SIGHUP, 83),
        (signal.SIGINT, exit_codes.INTERRUPTED),
    ],
)
def test_a_signal_is_remembered_and_the_handlers_are_given_back(number, code):
    if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip("the tests run under nohup")
    before, threads = signal.getsignal(number), threading.active_count()
    stop = StopRequest(TrainingConfig())
    try:
        assert stop.reason(1, is_first=True) == 0
        for _ in range(2):
            # the same request over two ways; not to a thread that gets it when the handlers are gone
            signal.pthread_kill(threading.main_thread().ident, number)
        while not stop.asked:
            time.sleep(0.001)
        assert stop.reason(2, is_first=True) == code
    finally:
        stop.release()
    assert signal.getsignal(number) is before and threading.active_count() == threads


def test_a_request_that_came_while_requests_were_blocked_is_heard_and_an_ignored_one_is_not():
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    signal.pthread_kill(threading.main_thread().ident, signal.SIGTERM)
    try:
        with StopRequest(TrainingConfig()) as stop:
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            while not stop.asked:
                time.sleep(0.001)
            assert stop.reason(1, is_first=True) == exit_codes.PREEMPTED
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_time_of_a_run_counts_from_its_first_attempt(monkeypatch):
    settings = TrainingConfig(exit_duration_in_mins=10)
    for began, code in ((time.time() - 500, 0), (time.time() - 700, exit_codes.EXIT_DURATION)):
        monkeypatch.setenv(BEGAN, str(began))
        with StopRequest(settings) as stop:
            assert stop.reason(1, is_first=True) == code


def test_a_run_stops_at_its_interval_after_its_time_and_when_the_stop_file_appears(
    tmp_path, monkeypatch
):
    # the file is looked for at once, and then not for an hour
    monkeypatch.setattr(stopping, "LOOK_EVERY", 3600.0)
    file = tmp_path / "stop"
    settings = {"exit_interval": 3, "exit_duration_in_mins": 1e-9, "stop_file": str(file)}
    codes = {
        "exit_interval": exit_codes.EXIT_INTERVAL,
        "exit_duration_in_mins": 81,
        "stop_file": exit_codes.STOP_FILE,
    }
    file.touch()
    for name, value in settings.items():
        stop = StopRequest(TrainingConfig(**{name: value}))
        try:
            found = [stop.reason(step, is_first=True) for step in (2, 3, 4)]
        finally:
            stop.release()
        expected = {
            "exit_interval": [0, 80, 0],
            "exit_duration_in_mins": [81] * 3,
            "stop_file": [82, 0, 0],
        }[name]
        assert found == expected, name
        assert codes[name] in found
    remove_stop_file(TrainingConfig(stop_file=str(file)))
    assert not file.exists()


def test_state_survives_a_round_trip_through_plain_values():
    state = TrainState(3, 24, {"scale": 8.0}, {"steps": 3})
    assert TrainState.from_dict(state.to_dict()) == state


@pytest.mark.parametrize(
    ("settings", "dtype"),
    [
        ({}, torch.float32),
        ({"bf16": True}, torch.bfloat16),
        ({"fp16": True}, torch.float16),
        ({"fp64": True}, torch.float64),
    ],
)
def test_the_precision_decides_the_type_of_the_weights(settings, dtype):
    assert parameter_dtype(OptimConfig(**settings)) == dtype


def test_the_machine_is_measured():
    peak = matmul_peak(Axis.alone("world"), torch.device("cpu"), torch.float32, seconds=0.2)
    assert 0 < peak < 1e15 and 10**7 < peak_memory(torch.device("cpu")) < 10**12
    assert choose_device("cpu", 3) == torch.device("cpu")


@pytest.mark.parametrize(
    ("there", "local_rank", "backend", "found"),
    [
        (2, 1, None, 1),
        (2, 2, None, "this machine has 2"),
        (2, 2, "nccl", "this machine has 2"),
        (2, 3, "gloo", 1),
        (0, 0, "gloo", "this machine has no CUDA device .* use --device cpu"),
    ],
)
def test_each_rank_has_a_gpu_of_its_own_or_with_gloo_its_share_of_one(
    there, local_rank, backend, found, monkeypatch
):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    if isinstance(found, int):
        assert choose_device("cuda", local_rank, backend) == torch.device("cuda", found)
    else:
        with pytest.raises(UserError, match=found):
            choose_device("cuda", local_rank, backend)
