"""Tokenizers: `load` one by kind or file, `train` a new one on texts."""

from megascratch.tokenizer.interface import EncodedText, Tokenizer
from megascratch.tokenizer.registry import KINDS, TokenizerSource, load, train

__all__ = ["KINDS", "EncodedText", "Tokenizer", "TokenizerSource", "load", "train"]
