"""Ranks on several machines, played by threads of one process, and laws of what one rank of a machine reads for all."""

import os
import shutil
import socket
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from megascratch.config.errors import RanksDiffer, UserError
from megascratch.data.tokens import fingerprint
from megascratch.data.tokens.fingerprint import fingerprints
from megascratch.data.tokens.token_files import TokenReader
from megascratch.parallel.rendezvous import Rendezvous
from megascratch.training.start import once
from megascratch.training.start.once import shared_digests
from megascratch.training.start.preflight import RankReport, check_ranks_agree, rank_facts
from tests.support.corpora import write

NO_DATA = {"train_data_path": None, "valid_data_path": None, "test_data_path": None}
TEXT = [range(50), range(7, 30), range(9)]


def on_machines(
    hosts: Sequence[str],
    of_rank: Callable[[Rendezvous], Any],
    seconds: float = 20.0,
    store: dist.Store | None = None,
) -> list[Any]:
    """What `of_rank` returns for each rank, or the UserError that it raises. Each rank is a thread, on the host whose
    name is given."""
    store = dist.HashStore() if store is None else store
    results: list[Any] = [None] * len(hosts)
    names = threading.local()

    def run(rank: int) -> None:
        names.host = hosts[rank]
        try:
            results[rank] = of_rank(Rendezvous(store, rank, len(hosts), timedelta(seconds=seconds)))
        except UserError as error:
            results[rank] = error

    with patch.object(socket, "gethostname", lambda: names.host):
        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(hosts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return results


def settings_of(prefix: str) -> dict[str, Any]:
    return NO_DATA | {"data_path": [prefix], "data_stages": None}


def fingerprints_of(prefix: str, meeting: Rendezvous) -> dict[str, Any]:
    """What a rank compares of a corpus, with the digests of its machine."""
    known = shared_digests(meeting, settings_of(prefix)).files
    return fingerprints({"corpus": TokenReader(prefix, known=known)}, known)["corpus"]


def grown(prefix: str) -> None:
    """The same file with a byte more and the old time of its last change."""
    seen = os.stat(f"{prefix}.bin")
    with open(f"{prefix}.bin", "ab") as file:
        file.write(b"\0\0")
    os.utime(f"{prefix}.bin", ns=(seen.st_atime_ns, seen.st_mtime_ns))


def changed(prefix: str) -> None:
    """The same file and size, with other ids and the old time of its last change."""
    seen = os.stat(f"{prefix}.bin")
    with open(f"{prefix}.bin", "r+b") as file:
        file.write(b"\7\7")
    os.utime(f"{prefix}.bin", ns=(seen.st_atime_ns, seen.st_mtime_ns))


def replaced(prefix: str) -> None:
    """Another file of the same name and size."""
    content = bytearray(Path(f"{prefix}.bin").read_bytes())
    content[0] ^= 1
    other = Path(f"{prefix}.other")
    other.write_bytes(content)
    shutil.copystat(f"{prefix}.bin", other)
    other.replace(f"{prefix}.bin")


CHANGES = {"a longer file": grown, "other ids": changed, "another file": replaced}


def a_digest_is_taken_only_of_the_same_file(folder: Path, change: str) -> None:
    """The second rank of a machine sees the file after a change, and reads it by itself."""
    prefix = write(folder / change.replace(" ", "_"), TEXT)
    Path(f"{prefix}.digests").unlink()
    before = fingerprints({"corpus": TokenReader(prefix)})["corpus"]
    asked = threading.Event()

    def of_rank(meeting: Rendezvous) -> dict[str, Any]:
        if meeting.rank == 0:
            found = fingerprints_of(prefix, meeting)
            CHANGES[change](prefix)
            asked.set()
            return found
        asked.wait()
        return fingerprints_of(prefix, meeting)

    first, second = on_machines(["a", "a"], of_rank)
    assert first == before
    assert second == fingerprints({"corpus": TokenReader(prefix)})["corpus"] != before


def machines_with_other_code_differ(folder: Path) -> None:
    """The package of one machine has another digest: every rank is told so, by host."""
    digests = {"a": "1" * 16, "b": "2" * 16}

    def of_rank(meeting: Rendezvous) -> None:
        code = shared_digests(meeting, NO_DATA | {"data_path": None, "data_stages": None}).code
        check_ranks_agree(meeting, RankReport(rank_facts({}, {}, code, {})))

    with patch.object(once, "code_digest", lambda: digests[socket.gethostname()]):
        raised = on_machines(["a", "a", "b", "b"], of_rank)
    assert all(isinstance(error, RanksDiffer) for error in raised), raised
    (text,) = {str(error) for error in raised}
    assert text.splitlines()[1:] == [
        "what              a (ranks 0-1)     b (ranks 2-3)",
        "code megascratch  1111111111111111  2222222222222222",
    ]


class Counted:
    """A function that counts its calls, by the host that makes them."""

    def __init__(self, function: Callable[..., Any]):
        self.function = function
        self.hosts: list[str] = []

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.hosts.append(socket.gethostname())
        return self.function(*args, **options)


def each_machine_reads_a_corpus_once(folder: Path) -> None:
    """Four ranks on two machines: the index is hashed twice, the parts of the ids are read twice, and all ranks have
    the digests of a rank that is alone."""
    prefix = write(folder / "read_once", TEXT)
    whole = Counted(fingerprint._whole)
    parts = Counted(fingerprint.sampled)
    with patch.object(fingerprint, "_whole", whole), patch.object(fingerprint, "sampled", parts):
        found = on_machines(["a", "a", "b", "b"], lambda it: fingerprints_of(prefix, it))
    assert found == [fingerprints({"corpus": TokenReader(prefix)})["corpus"]] * 4
    assert sorted(whole.hosts) == sorted(parts.hosts) == ["a", "b"]
