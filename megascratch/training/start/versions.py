"""Library versions and a digest of this package's code, to check that all machines of a run have the same software."""

import hashlib
import platform
from importlib import metadata
from pathlib import Path

import megascratch

LIBRARIES = ("torch", "numpy", "safetensors", "sentencepiece", "tokenizers", "gigatoken")


def versions() -> dict[str, str]:
    """Version by library, including Python and this package; 'none' for a library that is not installed."""
    return {"python": platform.python_version(), "megascratch": _version("megascratch")} | {
        name: _version(name) for name in LIBRARIES
    }


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return "none"


def code_digest() -> str:
    """sha256 (the first 16 hex digits) of every source and compiled file of the installed package."""
    root = Path(megascratch.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".so")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]
