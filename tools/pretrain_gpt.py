"""Trains with the flags of Megatron-LM's script of the same name: `torchrun ... tools/pretrain_gpt.py FLAGS`.

The flags mean what they mean there; `megascratch megatron-flags explain` says what each one becomes. Also accepts
--nproc-per-node N, which starts the ranks without torchrun.
"""

import sys

from megascratch.commands import main

if __name__ == "__main__":
    sys.exit(main(["pretrain", "--flags-of", "megatron", *sys.argv[1:]]))
