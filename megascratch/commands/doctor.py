"""`megascratch doctor`: finds what would stop or slow down a run, names the host, and says how to fix it.

    megascratch doctor --config my.yaml --nproc-per-node 8       on one machine
    torchrun ... -m megascratch doctor --config my.yaml          on all machines, started like the run

It checks that versions, code and settings are the same on every rank, then files, network, clocks, devices, free space
and speed of the disk, runs a small collective over every axis, and prints the model's parameters and the memory of a
rank. Exit code 0 if a run can start, 1 if not.
"""

import argparse
import shlex
import tempfile
from datetime import timedelta
from functools import partial
from pathlib import Path

from megascratch.commands.pretrain import Start, nodes_of, run_rank, start_of
from megascratch.config.exit_codes import DONE, FAILED
from megascratch.config.fields import flat, with_fields
from megascratch.config.load import print_notices, read_config
from megascratch.config.resolve import Values, derive
from megascratch.config.settings import Config
from megascratch.runtime.run_log import FILE as LOG
from megascratch.supervision.launch import LaunchConfig, launch
from megascratch.supervision.multi_node import launch_node
from megascratch.training.start.settings import legal_settings


def main(options: argparse.Namespace) -> int:
    """0: a run can start; 1: it cannot. Raises: UserError for invalid settings or a rendezvous that fails."""
    start = start_of(options)
    loaded = None
    named: Values | None = None  # the settings, if any is given
    config = with_fields(Config(), derive(flat(Config()), start.world))
    if options.settings:
        loaded = read_config(options.settings)
        config = legal_settings(loaded, start.world).config
        named = flat(config)
    if start.ranks > 1 or start.nnodes:
        return _launched(start, options, config.training.output_dir)
    if loaded is not None:
        print_notices(loaded.origins)
    # imports torch, so it comes after the checks
    from megascratch.commands.doctor_findings import examine

    timeout = timedelta(seconds=options.timeout)
    found = examine(config.parallel, config.training.device, named, loaded, start.world, timeout)
    return int(any(finding.state == "FAIL" for finding in found))


def _launched(start: Start, options: argparse.Namespace, output_dir: str) -> int:
    """Starts the ranks of this machine, each of which runs the command. Returns: 0 or 1, as `main`."""
    words = ["doctor", "--timeout", str(options.timeout), *start.words]
    command = shlex.join(["megascratch", "doctor", *options.argv])
    if start.nnodes is not None:
        return launch_node(nodes_of(start, words, command, Path(output_dir, LOG)))
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "cannot_start")
        code = launch(
            LaunchConfig(
                target=partial(_rank, words, command, str(found)),
                ranks=start.ranks,
                max_restarts=0,
                limit=options.timeout,
                reports=Path(folder),
                preload=("megascratch.commands.doctor", "megascratch.commands.doctor_findings"),
            )
        )
        return FAILED if code == DONE and found.exists() else code


def _rank(words: list[str], command: str, found: str) -> int:
    """Runs one rank. That a run cannot start is a result, not a failure of the rank: it creates the file `found`."""
    code = run_rank(words, command)
    if code == FAILED:
        Path(found).touch()
        return DONE
    return code
