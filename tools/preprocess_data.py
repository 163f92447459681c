"""Text to .bin/.idx with the flags of Megatron-LM's script of the same name: `megascratch preprocess` for its users.

All 35 flags of that script are accepted; one that differs or has no effect is told in one line. The script is thin:
what an option of a tokenizer means is a row of the table of all options of Megatron-LM.
"""

import sys

from megascratch.commands import main

if __name__ == "__main__":
    sys.exit(main(["preprocess", "--flags-of", "megatron", *sys.argv[1:]]))
