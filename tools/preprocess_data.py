"""Text to .bin/.idx under the name that people who come from Megatron know: the same as `megascratch preprocess`."""

import sys

from megascratch.commands import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", *sys.argv[1:]]))
