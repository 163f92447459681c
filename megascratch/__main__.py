"""`python -m megascratch COMMAND` is the same as `megascratch COMMAND`, so that torchrun can start it with -m."""

import sys

from megascratch.commands import main

if __name__ == "__main__":
    sys.exit(main())
