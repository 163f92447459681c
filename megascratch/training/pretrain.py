"""Runs pretraining on one rank, from legal settings to an exit code. Reports the first cause of a failure, not its
echoes on other ranks.
"""

import sys

from megascratch.config.errors import Problems, RanksSilent, UserError
from megascratch.config.exit_codes import BAD_INPUT, DONE, FAILED, STOPS
from megascratch.config.printable import printable_lines
from megascratch.parallel import groups
from megascratch.parallel.pending import CommunicationError
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import ended
from megascratch.runtime.launch_environment import launch_environment
from megascratch.supervision.hang_watch import HangWatch
from megascratch.supervision.torchrun_watcher import (
    outlive_dead_machines,
    started_by_torchrun,
    watch_torchrun,
)
from megascratch.training.health.nothing_to_learn import NothingLearnedError
from megascratch.training.health.replicas import ReplicasDiffer
from megascratch.training.loop import train
from megascratch.training.setup import build_run
from megascratch.training.start.settings import LegalSettings
from megascratch.training.stop import StopRequest


def pretrain(settings: LegalSettings, problems: Problems, command: str = "") -> int:
    """Pretrains a model.

    Args:
        problems: what is wrong with the files of this rank, as far as it is known.
        command: with which the user started the run, for its folder; '' from Python.

    Returns: an exit code of `config.exit_codes`: 0 if the run is done, 1 if communication or numbers failed, or the
    reason for which the run has saved and stopped early. With exit_zero_on_stop an early stop is 0, and so it is under
    plain torchrun, which would take any other code for a failure and restart the run.
    """
    training = settings.config.training
    limit = 60 * settings.config.parallel.distributed_timeout_minutes
    watch_torchrun(limit, training.output_dir)
    fault_point("run.begin")
    with StopRequest(training) as stop, HangWatch(limit):
        code = _code(settings, problems, command, stop)
    is_success = training.exit_zero_on_stop or started_by_torchrun()
    return DONE if code in STOPS and is_success else code


def _code(settings: LegalSettings, problems: Problems, command: str, stop: StopRequest) -> int:
    """Trains, prints why the run has failed if it has, and leaves the process group. Requests to stop are handled until
    the end.

    Raises: UserError, and any error that needs a traceback.
    """
    code = FAILED
    cause = ""
    try:
        code = train(build_run(settings, problems, command), stop)["exit_code"]
        fault_point("run.end")
    except (CommunicationError, RanksSilent) as error:
        cause = str(error)
        rank = launch_environment().rank
        print(
            f"megascratch pretrain: rank {rank}: {printable_lines(cause)}",
            file=sys.stderr,
            flush=True,
        )
        outlive_dead_machines()
    except (FloatingPointError, ReplicasDiffer, NothingLearnedError) as error:
        cause = str(error)
        if launch_environment().rank == 0:  # all ranks have the same error
            print(f"megascratch pretrain: {printable_lines(cause)}", file=sys.stderr, flush=True)
    except BaseException as error:
        code = BAD_INPUT if isinstance(error, UserError) else FAILED
        cause = f"{type(error).__name__}: {error}"
        raise
    finally:
        ended(code, cause)
        groups.stop()
    return code
