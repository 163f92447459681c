"""One thread per process before torch is imported: the tests run several ranks on few cores. No GPU except for
`-m gpu`, so that whatever leaves the device open tests the same on every machine. And no deadline for an example of
hypothesis: how long one takes says how busy the machine is."""

import multiprocessing.process
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

from megascratch.config.exit_codes import OWN_PROCESS
from megascratch.config.registry import REGISTERED

HANDLERS = {
    number: signal.getsignal(number)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
}
os.environ.setdefault("OMP_NUM_THREADS", "1")
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")
# a failed helper says what it compared, as a failed test does
pytest.register_assert_rewrite("tests.support")


def pytest_configure(config: pytest.Config) -> None:
    import matplotlib.figure  # noqa: F401 - a run in this process draws its curves itself

    if "gpu" not in config.getoption("markexpr").replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device and -m gpu")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-processes",
        action="store_true",
        help="skip each test at the point where it starts a process",
    )


@pytest.fixture(autouse=True)
def _nothing_stays_registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test imports and registers is unknown to the next one."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    for table in REGISTERED.values():
        table.clear()


@pytest.fixture(autouse=True)
def _signals_are_heard() -> Iterator[None]:
    """A run in this process that ends, or fails, with signals ignored does not make later tests and their processes
    deaf to them."""
    hear_signals()
    yield
    hear_signals()


def hear_signals() -> None:
    """Sets the handlers that the tests began with, as in a process that does more than one command."""
    os.environ.pop(OWN_PROCESS, None)
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def _no_processes(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --no-processes, whatever starts a process skips its test: ranks, commands, workers, compilers."""
    if not request.config.getoption("--no-processes"):
        yield
        return

    def refuse(*args: object, **kwargs: object) -> NoReturn:
        pytest.skip("starts a process")

    def start_as_daemon(thread: threading.Thread) -> None:
        """A thread of a skipped test may wait forever for a process that was never started."""
        thread.daemon = True
        start_thread(thread)

    start_thread = threading.Thread.start

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse)
        patch.setattr(subprocess.Popen, "__del__", lambda process: None)
        patch.setattr(multiprocessing.process.BaseProcess, "start", refuse)
        patch.setattr(threading.Thread, "start", start_as_daemon)
        patch.setattr(os, "fork", refuse)
        patch.setattr(os, "posix_spawn", refuse)
        yield
