"""`python -m megascratch VERB` is the command `megascratch VERB`, so that torchrun can start it with -m."""

import sys

from megascratch.commands import main

if __name__ == "__main__":
    sys.exit(main())
