"""Explains a corpus that is not where its name says: another name that is near, a raw text, a folder, a blend.

A corpus is named by the common part of its two files, .bin and .idx.
"""

import os
import re
import shlex
from difflib import get_close_matches
from pathlib import Path

from megascratch.config.errors import UserError
from megascratch.config.hub_names import text_hint
from megascratch.config.printable import printable
from megascratch.data.text.sources import SUFFIXES, format_of
from megascratch.data.tokens.token_files import bin_path, idx_path, open_map

MOST_NAMES = 3
OWN_SUFFIXES = (".bin", ".idx", ".json", ".digests")
SEPARATORS = re.compile(r"[,;:=]+")


def require_corpus(prefix: str) -> None:
    """Raises: UserError, in one sentence, if a file of a corpus on this machine cannot be read."""
    if not os.path.exists(idx_path(prefix)) and not os.path.exists(bin_path(prefix)):
        raise UserError(printable(_explain(prefix)))
    open_map(idx_path(prefix), "index")
    open_map(bin_path(prefix), "token file")


def _explain(prefix: str) -> str:
    """Why there is no corpus of this name, and what to give instead."""
    path = Path(prefix)
    bare = prefix[: -len(path.suffix)] if path.suffix in OWN_SUFFIXES else prefix
    if bare != prefix and os.path.exists(idx_path(bare)):
        return f"{prefix} is one file of a corpus, which is named by the common part of its files: use {bare}"
    if os.path.isdir(path):
        return _explain_folder(path)
    if os.path.exists(path):
        return _explain_text(prefix, path.name.partition(".")[0])
    words = [word for word in SEPARATORS.split(prefix) if word]
    if len(words) > 1 and any(os.path.exists(idx_path(word)) for word in words):
        return f"there is no corpus {prefix}: corpora and weights are separated by spaces, use {' '.join(words)}"
    near = _near(path)
    hint = f" - did you mean {near}?" if near else ""
    if not hint and not prefix.endswith("_document"):  # no data set of a hub ends so
        hint = text_hint(prefix)
    return (
        f"index {idx_path(prefix)} cannot be read: No such file or directory; a corpus is named by its prefix and has "
        f".bin and .idx{hint}"
    )


def _explain_folder(path: Path) -> str:
    corpora = sorted(str(file.with_suffix("")) for file in path.glob("*.idx"))
    if corpora:
        names = ", ".join(corpora[:MOST_NAMES])
        more = f" and {len(corpora) - MOST_NAMES} more" if len(corpora) > MOST_NAMES else ""
        return f"{path} is a folder: name the corpora in it ({names}{more})"
    if any(format_of(str(file)) for file in path.rglob("*")):
        return _explain_text(str(path), path.name or "corpus")
    return f"{path} is a folder without a corpus (.bin and .idx) and without text ({', '.join(SUFFIXES)})"


def _explain_text(path: str, name: str) -> str:
    command = shlex.join(["megascratch", "preprocess", "--input", path, "--output-prefix", name])
    return (
        f"{path} is not a corpus of token ids yet: run {command} --tokenizer-model FILE, then give "
        f"{name}_text_document"
    )


def _near(path: Path) -> str:
    """The name of a corpus in the same folder that is probably meant; '' if there is none."""
    known = sorted(file.stem for file in path.parent.glob("*.idx"))
    known = [name for name in known if not name.endswith("_loss_mask")]
    longer = [name for name in known if name.startswith(f"{path.name}_")]
    found = longer[:1] or get_close_matches(path.name, known, n=1, cutoff=0.8)
    return str(path.parent / found[0]) if found else ""
