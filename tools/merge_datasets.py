"""Several .bin/.idx pairs to one, with Megatron's flags: the same as `megascratch data merge`."""

import sys

from megascratch.commands import main

if __name__ == "__main__":
    sys.exit(main(["data", "merge", *sys.argv[1:]]))
