"""A Parquet file that aborts its reader ends preprocessing with one sentence that names the file, not with a crash."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.preprocess_runs import tool

READER = '''
import os
class ArrowException(Exception): pass
class Names: names = ["text"]
class Group: num_rows, num_columns, column = 1, 0, None
class MetaData:
    num_row_groups = 1
    def row_group(self, group): return Group
class ParquetFile:
    """Stands for pyarrow's: the file's content says when it aborts."""
    metadata, schema_arrow = MetaData(), Names
    def __init__(self, file, **_):
        self.content = file.read()
        if self.content == b"when opened": os.abort()
    def iter_batches(self, **_):
        os.abort()
        yield
'''


@pytest.fixture
def environment(tmp_path):
    library = tmp_path / "library" / "pyarrow"
    library.mkdir(parents=True)
    (library / "__init__.py").write_text(READER)
    (library / "parquet.py").write_text(READER)
    paths = [
        str(library.parent),
        os.environ.get("PYTHONPATH", ""),
        str(Path(__file__).resolve().parents[3]),
    ]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("when", ["when opened", "when read"])
def test_a_file_that_aborts_its_reader_is_refused_by_name(tmp_path, environment, when, workers):
    work = tmp_path / "work"
    work.mkdir()
    (work / "a.jsonl").write_text('{"text": "sound"}\n')
    (work / "b.parquet").write_text(when)
    command = tool(
        work, "--input", str(work / "a.jsonl"), str(work / "b.parquet"), "--workers", workers
    )
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=work)
    said = [
        line
        for line in done.stderr.splitlines()
        if line.startswith("megascratch preprocess: error: ")
    ]
    assert done.returncode == 2, done.stderr
    assert len(said) == 1
    assert (
        "b.parquet cannot be read as Parquet: its reader was ended by SIGABRT, so the file is damaged"
        in said[0]
    )
    assert sorted(path.name for path in work.iterdir()) == ["a.jsonl", "b.parquet"]
