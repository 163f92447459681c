"""The flags of `megascratch checkpoint`."""

from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.shared import add_json, at_least

COMMANDS = {
    "inspect": "Lists the steps of a folder, or the tensors, files and state of one step.",
    "verify": "Reads every byte of the given steps, or of all steps of a folder; exit code 1 if there are problems.",
    "diff": "Compares two checkpoints of any layouts tensor by tensor; exit code 1 if they differ.",
    "reshard": "Rewrites a checkpoint with another number of files, another precision, or without the optimizer.",
    "average": "Writes the mean of the weights of several steps, for evaluation and generation.",
    "prune": "Deletes old steps, after it has read every byte of the steps to keep; at least one valid step remains.",
}
EXAMPLES = {
    "inspect": "megascratch checkpoint inspect runs/mine/checkpoints",
    "verify": "megascratch checkpoint verify runs/mine/checkpoints",
    "diff": "megascratch checkpoint diff runs/a/checkpoints/step_00000100 \\\n"
    "    runs/b/checkpoints/step_00000100",
    "reshard": "megascratch checkpoint reshard runs/mine/checkpoints --output other \\\n"
    "    --files 8 --dtype bf16",
    "average": "megascratch checkpoint average runs/mine/checkpoints/step_000001* \\\n"
    "    --output averaged",
    "prune": "megascratch checkpoint prune runs/mine/checkpoints \\\n"
    "    --keep-last-n-checkpoints 3 --dry-run",
}
NOTE = (
    "The folder of a run (runs/mine) stands for the checkpoints in it. If a command needs one step and a folder of "
    "steps is given, the newest valid step is used. Folders may be in object storage, such as s3://bucket/run. A "
    "checkpoint does not depend on a layout: any number of ranks on any layout can load it, so reshard changes files "
    "and data types, never a layout."
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch checkpoint",
        "Inspects, verifies, compares, reshards, averages and prunes checkpoints.",
        list(EXAMPLES.values()),
        NOTE,
    )
    add_command = made.add_commands(COMMANDS)
    parsers = {}
    for name, example in EXAMPLES.items():
        parsers[name] = add_command(name, examples=[example])
        add_json(parsers[name])
    for name in ("inspect", "reshard", "prune"):
        parsers[name].add_argument(
            "path", metavar="DIR", help="a folder of steps, or a step folder"
        )
    parsers["verify"].add_argument(
        "path", nargs="+", metavar="DIR", help="folders of steps, or step folders"
    )
    parsers["average"].add_argument(
        "path",
        nargs="+",
        metavar="DIR",
        help="step folders, or folders of steps (each one's newest)",
    )
    add = parsers["diff"].add_argument
    add("first", metavar="FIRST", help="a step folder, or a folder of steps")
    add("second", metavar="SECOND", help="the checkpoint to compare it with")
    for name, most in (("inspect", 20), ("diff", 40)):
        parsers[name].add_argument(
            "--most",
            type=at_least(0),
            default=most,
            metavar="N",
            help=f"most rows to print (default: {most})",
        )
    for name in ("reshard", "average"):
        _add_output(parsers[name])
    add = parsers["reshard"].add_argument
    add(
        "--dtype",
        choices=("fp64", "fp32", "bf16", "fp16"),
        metavar="TYPE",
        help="precision of the weights: fp64, fp32, bf16 or fp16",
    )
    add("--weights-only", action="store_true", help="do not write the optimizer state")
    _add_retention(parsers["prune"])
    return made


def _add_output(made: Parser) -> None:
    add = made.add_argument
    add("--output", required=True, metavar="DIR", help="folder of steps to write to")
    add(
        "--files",
        type=at_least(1),
        metavar="N",
        help="number of files (default: from --file-mib)",
    )
    add(
        "--file-mib",
        type=at_least(1),
        default=4096,
        metavar="N",
        help="largest size of a file in MiB (default: 4096)",
    )


def _add_retention(made: Parser) -> None:
    """Which steps are kept; the names are those of the settings of a run."""
    add = made.add_argument
    add(
        "--keep-last-n-checkpoints",
        type=at_least(1),
        default=1,
        metavar="N",
        help="keep the N newest steps (default: 1)",
    )
    add(
        "--save-retain-interval",
        type=at_least(0),
        default=0,
        metavar="N",
        help="also keep steps that are multiples of N",
    )
    add(
        "--keep-best-n-checkpoints",
        type=at_least(0),
        default=0,
        metavar="N",
        help="also keep the N steps with the lowest loss",
    )
    add("--dry-run", action="store_true", help="only print what would be deleted")
