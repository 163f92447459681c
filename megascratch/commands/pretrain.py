"""`megascratch pretrain`: settings in, a trained model out. Started by torchrun, or alone for one process."""

import os
import sys
from collections.abc import Sequence

from megascratch.config.derive import derive
from megascratch.config.laws import validate
from megascratch.config.load import format_config, load_config
from megascratch.config.notices import notices


def main(argv: Sequence[str]) -> int:
    """Trains as the flags and the YAML file say; 0 when the run is done or was asked to stop and has saved."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    config, origins = load_config(argv)
    config = derive(config, world)
    validate(config, world)
    if origins.print_config:
        print(format_config(config, origins))
        return 0
    if os.environ.get("RANK", "0") == "0":
        for notice in notices(config):
            print(f"notice: {notice}", file=sys.stderr)
    from megascratch.training.pretrain import pretrain  # imports torch: settings are judged before that

    return pretrain(config)
