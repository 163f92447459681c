"""A whole run of one rank, from legal settings to an exit code; the first cause of a failure is told, not its
echoes.
"""

import os
import sys

from megascratch.config.settings import Config
from megascratch.faults import fault_point
from megascratch.parallel import mesh
from megascratch.parallel.collectives import CommunicationError
from megascratch.training.loop import train
from megascratch.training.setup import prepare


def pretrain(config: Config) -> int:
    """0 when the run is done or has saved after a request to stop; 1 when communication or numbers failed."""
    fault_point("run.begin")
    try:
        train(prepare(config))
    except CommunicationError as error:
        print(f"megascratch pretrain: rank {os.environ.get('RANK', '0')}: {error}", file=sys.stderr, flush=True)
        return 1
    except FloatingPointError as error:
        if os.environ.get("RANK", "0") == "0":  # all ranks found the same
            print(f"megascratch pretrain: {error}", file=sys.stderr, flush=True)
        return 1
    finally:
        mesh.stop()
    return 0
