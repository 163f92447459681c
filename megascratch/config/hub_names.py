"""Recognises what other tools would download: a name on a hub such as Hugging Face's, or a web address.

Nothing is downloaded here, so a name that is not on the disk is answered with the command that fetches it.
"""

import os
import re
from pathlib import Path

NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
FILE = re.compile(r".*\.(json|jsonl|txt|md|model|tiktoken|parquet|bin|idx|gz|zst|bz2|xz)")


def tokenizer_hint(name: str | Path) -> str:
    """How to get a tokenizer that is not at this path, for the end of a message; '' if the path is an ordinary one."""
    word = str(name)
    for suffix in (".json", ".model", ".tiktoken"):
        if os.path.exists(word + suffix):
            return f" - did you mean {word}{suffix}?"
    if not _is_hub_name(word):
        return _address_hint(word)
    folder = word.rpartition("/")[2]
    return (
        f"; nothing is downloaded: for a model of this name run hf download {word} --local-dir {folder}, then give "
        f"{folder}"
    )


def text_hint(name: str) -> str:
    """How to get a text or data set that is not at this path, for the end of a message; '' for an ordinary path."""
    if "/" not in name or not _is_hub_name(name):
        return _address_hint(name)
    folder = name.rpartition("/")[2]
    return (
        f"; nothing is downloaded: for a data set of this name run hf download {name} --repo-type dataset --local-dir "
        f"{folder}, then megascratch preprocess --input {folder}"
    )


def _is_hub_name(word: str) -> bool:
    """Whether a word looks like OWNER/NAME or NAME, and not like a file or a path below an existing folder."""
    is_name = NAME.fullmatch(word) is not None and FILE.fullmatch(word) is None
    owner, slash, _ = word.partition("/")
    return is_name and not (slash and os.path.exists(owner))


def _address_hint(word: str) -> str:
    if re.match(r"https?:/", word) is None:
        return ""
    return "; nothing is downloaded: fetch the file first, for example with curl -LO, and give its path"
