"""Text to a vocabulary file: the same as `megascratch tokenizer train`."""

import sys

from megascratch.commands import main

if __name__ == "__main__":
    sys.exit(main(["tokenizer", "train", *sys.argv[1:]]))
