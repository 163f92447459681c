"""Steps of checkpoint format 2, as older versions wrote them: all chunks in `manifest.json`, and no table."""

import json
from pathlib import Path
from typing import Any

from megascratch.checkpoint.format.manifest import FILE, signed
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint


def body_of(step: Path) -> dict[str, Any]:
    """What a manifest of format 2 says of a step of today."""
    tensors = {}
    with OpenCheckpoint(step) as contents:
        for name, whole in contents.manifest.tensors.items():
            chunks = []
            for chunk in contents.chunks(name):
                chunks.append(
                    {
                        "file": chunk.file,
                        "offset": chunk.offset,
                        "start": chunk.box.start,
                        "stop": chunk.box.stop,
                        "xxh3_64": f"{chunk.xxh3_64:016x}",
                    }
                )
            dtype = str(whole.dtype).removeprefix("torch.")
            tensors[name] = {"shape": whole.shape, "dtype": dtype, "chunks": chunks}
        files = {}
        for file in contents.data_files:
            files[file.name] = {
                "bytes": file.bytes,
                "header_bytes": file.header_bytes,
                "header_xxh3_64": f"{file.header_xxh3_64:016x}",
            }
        return {
            "format": 2,
            "step": contents.manifest.step,
            "state": contents.manifest.state,
            "files": files,
            "tensors": tensors,
        }


def to_format_2(step: Path) -> Path:
    """Rewrites a step as one of format 2; its data files stay. Returns the step."""
    body = json.dumps(body_of(step), sort_keys=True, separators=(",", ":"))
    (step / "chunks.bin").unlink()
    (step / FILE).write_bytes(signed(body.encode()))
    return step
