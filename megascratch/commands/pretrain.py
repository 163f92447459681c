"""`megascratch pretrain`: settings in, a trained model out.

Started by torchrun it is one rank; alone it is the only one, or with --nproc-per-node N it checks settings and files
first, without torch, and then starts N ranks on this machine through torchrun itself.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from megascratch.config.derive import derive
from megascratch.config.errors import SettingError, UserError
from megascratch.config.laws import broken_laws
from megascratch.config.load import format_config, read_config
from megascratch.config.notices import notices
from megascratch.config.resume import rules
from megascratch.training.inputs import missing_files, open_inputs

LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]


def main(argv: Sequence[str]) -> int:
    """Trains as the flags and the YAML file say; 0 when the run is done or was asked to stop and has saved."""
    if {"-h", "--help"} & set(argv):
        print("--nproc-per-node N     check settings and files, then start N ranks on this machine")
        print("--print-resume-rules   print what may change when a run goes on from a checkpoint, and stop\n")
    if "--print-resume-rules" in argv:
        print(rules())
        return 0
    ranks, words = _ranks_to_start(argv)
    world = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    config, origins, problems, unread = read_config(words)
    config = derive(config, world)
    problems += broken_laws(config, world, unread)
    if problems:
        raise SettingError("\n".join([*problems, *missing_files(config)]))
    if origins.print_config:
        print(format_config(config, origins))
        return 0
    if ranks:
        open_inputs(config)
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *LAUNCHER, str(ranks), "-m", "megascratch", "pretrain", *words])
    if os.environ.get("RANK", "0") == "0":
        for notice in notices(config):
            print(f"notice: {notice}", file=sys.stderr)
    from megascratch.training.pretrain import pretrain  # imports torch: settings are judged before that

    return pretrain(config)


def _ranks_to_start(argv: Sequence[str]) -> tuple[int, list[str]]:
    """How many ranks this process is asked to start (0: none, it is a rank itself), and the other words."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--nproc-per-node", type=int, default=0)
    try:
        own, words = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UserError(f"--nproc-per-node must be a number of ranks: {error.message}") from error
    if own.nproc_per_node and "WORLD_SIZE" in os.environ:
        raise UserError("--nproc-per-node starts ranks, but this already is one of torchrun's: give it to one of them")
    if own.nproc_per_node < 0:
        raise UserError(f"--nproc-per-node ({own.nproc_per_node}) must be at least 1")
    return own.nproc_per_node, words
