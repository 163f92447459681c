"""The flags of `megascratch schedule`."""

from megascratch.commands.own_parts import add_import
from megascratch.commands.parsers.base import Parser
from megascratch.commands.parsers.shared import add_json, at_least
from megascratch.config.registry import names

COMMANDS = {
    "show": "Draws a schedule.",
    "check": "Checks that a schedule is complete and free of deadlock; an error names the wrong action.",
    "compare": "Compares several schedules in a table.",
    "csv": "Writes a schedule as CSV in the notation of torch.distributed.pipelining.",
    "simulate": "Simulates a schedule with given times per stage, and prints its duration and bubble.",
}
EXAMPLES = {
    "show": "megascratch schedule show zb_v --stages 4 --microbatches 8 --output zb_v.svg",
    "check": "megascratch schedule check mine.csv",
    "compare": "megascratch schedule compare 1f1b zb_h1 zb_v --stages 4 --microbatches 8",
    "csv": "megascratch schedule csv zb_h1 --stages 4 --microbatches 8 --output zb_h1.csv",
    "simulate": "megascratch schedule simulate interleaved --virtual-stages 3 --stages 8 \\\n"
    "    --microbatches 24 --times times.csv --json",
}
NOTE = "Times are for one micro-batch on one rank; a backward that is not split takes b + w."


def parser() -> Parser:
    """The parser of the command."""
    made = Parser(
        "megascratch schedule",
        "Draws, checks, compares, exports and simulates pipeline schedules.",
        list(EXAMPLES.values()),
        NOTE,
    )
    add_command = made.add_commands(COMMANDS)
    parsers = {}
    for name, example in EXAMPLES.items():
        parsers[name] = add_command(name, examples=[example], note=NOTE)
    _add_schedule(parsers)
    for each in parsers.values():
        _add_sizes(each)
        add_import(each)
    for name in ("show", "compare", "simulate"):
        _add_times(parsers[name])
    for name in ("compare", "simulate"):
        add_json(parsers[name])
    add = parsers["show"].add_argument
    add("--output", metavar="FILE", help="file: .svg, .png or .pdf (default: the terminal)")
    add(
        "--unit",
        type=float,
        metavar="TIME",
        help="time per column (default: the shortest action)",
    )
    parsers["check"].add_argument(
        "--blocking", action="store_true", help="also check it for sends without buffers"
    )
    add = parsers["csv"].add_argument
    add("--output", metavar="FILE", help="file to write to (default: standard output)")
    add("--comms", action="store_true", help="also write sends and receives")
    return made


def _add_schedule(parsers: dict[str, Parser]) -> None:
    built_in = ", ".join(name for name in names("schedule") if name != "csv")
    about = f"{built_in}, a name that --import registers, or a .csv file"
    for name, each in parsers.items():
        if name == "compare":
            each.add_argument(
                "schedules", nargs="*", metavar="SCHEDULE", help=f"{about} (default: all)"
            )
        else:
            each.add_argument("schedule", metavar="SCHEDULE", help=about)


def _add_sizes(made: Parser) -> None:
    add = made.add_argument
    add("--stages", type=at_least(1), metavar="P", help="pipeline ranks (default: 4)")
    add("--microbatches", type=at_least(1), metavar="M", help="micro-batches per step (default: 8)")
    add(
        "--virtual-stages",
        type=at_least(1),
        metavar="V",
        help="model chunks per rank (interleaved; default: 2)",
    )
    add(
        "--group",
        type=at_least(1),
        metavar="G",
        help="micro-batches per chunk before the next chunk (interleaved; default: P)",
    )


def _add_times(made: Parser) -> None:
    """The times with which a schedule is simulated."""
    add = made.add_argument
    for flag, default, what in (
        ("--f", 1.0, "a forward"),
        ("--b", 1.0, "an input gradient"),
        ("--w", 1.0, "a weight gradient"),
        ("--comm", 0.0, "a transfer between stages"),
    ):
        add(
            flag,
            type=float,
            default=default,
            metavar="TIME",
            help=f"time of {what} (default: {default:g})",
        )
    add("--times", metavar="FILE", help="CSV with columns F, B, W, comm and a row per stage")
