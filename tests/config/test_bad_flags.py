"""Whatever is wrong with a command line, all of it is told at once, with exit code 2, before torch.distributed."""

import json
import re
import subprocess
import sys
from pathlib import Path

from tests.support.bad_flags import POOL, bad_sets

ROOT = Path(__file__).resolve().parents[2]


def test_sixty_sets_of_wrong_settings_are_refused_each_with_all_that_is_wrong(tmp_path):
    command = [sys.executable, str(ROOT / "tests" / "support" / "bad_flags.py"), "60", "5"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for chosen, (code, said, _) in zip(bad_sets(60, 5), found["answers"], strict=True):
        missing = [bad.told for bad in chosen if bad.told not in said]
        assert (code, missing) == (2, []), said
        said = re.sub(r"^notice: .*\n", "", said)  # of a flag that is given twice
        assert said.startswith("megascratch pretrain: error: ") and "Traceback" not in said
        if len(chosen) > 1:
            assert int(said.split(" problems")[0].split()[-1]) >= len(chosen)
    assert not found["distributed"] and list(tmp_path.iterdir()) == []


def test_the_sets_hold_every_wrong_setting():
    told = {bad.told for chosen in bad_sets(60, 5) for bad in chosen}
    assert told == {bad.told for bad in POOL}
