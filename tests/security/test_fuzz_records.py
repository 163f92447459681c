"""Whatever a user makes of a file: every reader takes it or refuses it in a few printable lines; never a traceback."""

import random
import shutil

import pytest

from megascratch.config.errors import UserError
from tests.support.editable_files import EDITABLE, Editable
from tests.support.file_mutations import changed_records, damaged, to_json

MOST_LENGTH = 2000


def fuzz(kind: Editable, folder, seeds: range) -> None:
    """For each seed one changed field and one damaged file, in a copy of a sound folder."""
    sound, work = folder / "sound", folder / "work"
    sound.mkdir()
    place = kind.make(sound).relative_to(sound)
    content = (sound / place).read_bytes()
    kind.read(sound / place)  # a sound one is read
    for seed in seeds:
        dice = random.Random(f"{kind.name} {seed}")
        changed = [damaged(content, dice)]
        if kind.record is not None:
            changed += [
                kind.wrap(to_json(record))
                for record in changed_records(kind.record(content), dice, 3)
            ]
        for text in changed:
            shutil.rmtree(work, ignore_errors=True)
            shutil.copytree(sound, work)
            (work / place).write_bytes(text)
            judge(kind, work / place, text)


def judge(kind: Editable, path, text: bytes) -> None:
    try:
        kind.read(path)
    except UserError as error:
        lines = str(error).split("\n")
        assert len(lines) <= 6 and all(
            line.isprintable() and len(line) <= MOST_LENGTH for line in lines
        ), (text, lines)
    except Exception as error:
        raise AssertionError(
            f"{kind.name}: {type(error).__name__}: {error!s:.200} for {text[:300]!r}"
        ) from error


@pytest.mark.parametrize("kind", EDITABLE, ids=lambda kind: kind.name)
def test_a_changed_file_is_read_or_refused_in_printable_lines(tmp_path, kind):
    fuzz(kind, tmp_path, range(8))


@pytest.mark.deep
@pytest.mark.parametrize("kind", EDITABLE, ids=lambda kind: kind.name)
def test_many_changed_files_are_read_or_refused_in_printable_lines(tmp_path, kind):
    fuzz(kind, tmp_path, range(100, 600))
