"""`megascratch verify`: checks with the user's own config that a layout computes the same model as one process.

Prints a table of differences. Exit code 0 if every layout passes, 1 if one fails.
"""

import argparse
from collections.abc import Sequence

from megascratch.commands.parsers.verify import MOST_RANKS
from megascratch.config.errors import UserError
from megascratch.config.fields import flat
from megascratch.config.load import load_config, print_notices
from megascratch.config.resolve import Values
from megascratch.training.start.inputs import open_tokenizer, own_schedule
from megascratch.verification.fewer_ranks import at_most
from megascratch.verification.layouts import Case, every_layout, own_layout, random_layouts
from megascratch.verification.scale_down import TOKENIZER_FILES, files_are_here
from megascratch.verification.shrink import EOD, for_proof


def main(options: argparse.Namespace) -> int:
    """Runs the command. Raises: UserError for an error that the user can fix."""
    config, origins = load_config(options.settings)
    print_notices(origins)
    if origins.print_config:
        raise UserError("--print-config is a flag of megascratch pretrain: use it there")
    settings = flat(config)
    is_here = not options.scale_down or files_are_here(settings, TOKENIZER_FILES)
    if settings["vocab_size"] is None and is_here:
        tokenizer = open_tokenizer(config.data, None)
        settings["vocab_size"] = tokenizer.vocab_size if tokenizer else None
    proof = for_proof(settings, options.steps, options.precision)
    if options.scale_down:
        proof = at_most(proof, MOST_RANKS)
    cases = _cases({**proof, "device": options.device}, options, origins.places)
    backend = config.parallel.distributed_backend
    _check_vocabulary(cases)
    for case in cases:
        own_schedule(flat(case.config))
    # imports torch, so it comes after the checks
    from megascratch.commands.verdicts import verify_all

    return verify_all(cases, options, backend)


def _cases(settings: Values, options: argparse.Namespace, places: dict[str, str]) -> list[Case]:
    fixed = {name for name, place in places.items() if place == "flag"}
    if options.max_world is None:
        return [own_layout(settings, options.full_size)]
    if options.random is None:
        return every_layout(settings, options.max_world, fixed, options.full_size)
    return random_layouts(
        settings,
        options.max_world,
        options.random,
        settings["seed"],
        fixed,
        places,
        options.full_size,
    )


def _check_vocabulary(cases: Sequence[Case]) -> None:
    size = min(case.config.model.vocab_size for case in cases)
    if size <= EOD:
        raise UserError(
            f"vocab-size ({size}) must be above {EOD} for synthetic text: use {EOD + 1} or more"
        )
