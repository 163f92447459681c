"""Small byte-level vocabularies for tests."""

import inspect
import textwrap
from functools import cache

from megascratch.tokenizer import train_bpe
from megascratch.tokenizer.adversarial_texts import FIXED
from megascratch.tokenizer.vocabulary import BYTE_OF, Vocabulary

CODE = [inspect.getsource(module) for module in (textwrap, inspect)]
END = "<|endoftext|>"


@cache
def trained(split: str) -> Vocabulary:
    """1,500 ids from code and from hostile text, so that merges reach into every script."""
    return train_bpe.train([*CODE, *FIXED * 3], 1500, split)


def revealing(split: str) -> Vocabulary:
    """A vocabulary whose ids show where a text was cut: every byte of a long character merges with its neighbours."""
    heads = [head.encode() for head in ("a", "A", "1", "!", " ", "\n", "s")]
    long = [bytes([byte]) for byte in range(0x80, 0x100)]
    merges = [(head, byte) for head in heads for byte in long] + [
        (byte, head) for head in heads for byte in long
    ]
    tokens = {bytes([byte]): byte for byte in range(len(BYTE_OF))}
    for left, right in merges:
        tokens[left + right] = len(tokens)
    return Vocabulary(tokens, merges, split, {})
