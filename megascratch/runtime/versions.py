"""The versions of megascratch, Python and the libraries that a result depends on. Imports none of them."""

import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path

LIBRARIES = ("torch", "numpy", "safetensors", "tokenizers", "sentencepiece", "gigatoken")

DOCUMENTATION = "https://github.com/megascratch/megascratch/tree/main/docs"


def version() -> str:
    """The version of the installed package."""
    return metadata.version("megascratch")


def commit() -> str | None:
    """The git commit of the source tree that the package is run from, with a '+' if tracked files have changes; None:
    it is not run from a clone."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        known = _git(root, "rev-parse", "HEAD")
        return known + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Name -> version, also of Python, the platform and, in a clone, the commit. Libraries that are missing are left
    out."""
    found = {"megascratch": version()}
    known = commit()
    if known is not None:
        found["commit"] = known
    found["python"] = platform.python_version()
    found["platform"] = f"{sys.platform} {platform.machine()}"
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()
