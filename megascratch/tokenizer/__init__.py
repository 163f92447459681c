"""Text to ids and back: `load` a tokenizer by kind or file, `train` one on texts."""

from megascratch.tokenizer.interface import Encoded, Tokenizer
from megascratch.tokenizer.kinds import KINDS, load, train

__all__ = ["KINDS", "Encoded", "Tokenizer", "load", "train"]
