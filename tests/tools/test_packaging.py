"""What makes packages names only files that exist."""

import re
import subprocess

from tests.support.doc_blocks import ROOT


def test_the_image_copies_files_that_exist_and_reach_the_build():
    """.dockerignore leaves out everything that it does not name."""
    text = (ROOT / "Dockerfile").read_text()
    copied = []
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        copied += line.split()[:-1]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert copied and all((ROOT / name).exists() for name in copied)
    assert {f"!{name}" for name in copied} <= set(ignored)


def test_the_script_that_checks_the_wheel_is_bash_and_names_files_that_exist():
    script = ROOT / "tools" / "check_wheel.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    named = re.findall(r"\$ROOT/([\w./-]+)", script.read_text())
    assert len(named) >= 4 and all((ROOT / name).exists() for name in named)
