"""A whole run of one rank, from legal settings to an exit code; the first cause of a failure is told, not its
echoes.
"""

import os
import sys

from megascratch.config.errors import RanksSilent, UserError
from megascratch.config.exit_codes import BAD_INPUT, DONE, FAILED, STOPS
from megascratch.config.printable import printable_lines
from megascratch.config.settings import Config
from megascratch.parallel import mesh
from megascratch.parallel.collectives import CommunicationError
from megascratch.runtime.faults import fault_point
from megascratch.runtime.heartbeat import ended
from megascratch.supervision.torchrun_watcher import outlive_dead_machines, started_by_torchrun, watch_torchrun
from megascratch.training.health.loss_guard import NothingLearnedError
from megascratch.training.health.replicas import ReplicasDiffer
from megascratch.training.loop import train
from megascratch.training.setup import build_run
from megascratch.training.stop import StopRequest


def pretrain(config: Config) -> int:
    """The code of `config.exit_codes`: 0 done, 1 when communication or numbers failed, or why the run has saved and
    stopped early. Under plain torchrun that is 0, too: it would take another code for a failure and start again."""
    watch_torchrun(60 * config.parallel.distributed_timeout_minutes, config.training.output_dir)
    fault_point("run.begin")
    with StopRequest(config.training) as stop:
        code = _code(config, stop)
    return DONE if code in STOPS and started_by_torchrun() else code


def _code(config: Config, stop: StopRequest) -> int:
    """Runs, says why the run has failed if it has, and leaves the other ranks; requests to stop are heard to the end.

    Raises: whatever needs a traceback, and UserError.
    """
    code, told = FAILED, ""
    try:
        code = train(build_run(config), stop)["exit_code"]
        fault_point("run.end")
    except (CommunicationError, RanksSilent) as error:
        told = str(error)
        rank = os.environ.get("RANK", "0")
        print(f"megascratch pretrain: rank {rank}: {printable_lines(told)}", file=sys.stderr, flush=True)
        outlive_dead_machines()
    except (FloatingPointError, ReplicasDiffer, NothingLearnedError) as error:
        told = str(error)
        if os.environ.get("RANK", "0") == "0":  # all ranks found the same
            print(f"megascratch pretrain: {printable_lines(told)}", file=sys.stderr, flush=True)
    except BaseException as error:
        code, told = (BAD_INPUT if isinstance(error, UserError) else FAILED), f"{type(error).__name__}: {error}"
        raise
    finally:
        ended(code, told)
        mesh.stop()
    return code
