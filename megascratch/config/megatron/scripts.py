"""Finds the training flags in a script: a shell script that starts Megatron-LM, or a YAML file with MODEL_ARGS.

A shell script is run by a restricted bash that finds no program: launchers (torchrun, python) are replaced by one that
writes down its words, programs that start others (srun, nsys, uv) by one that looks for a launcher behind its own
words, shells by restricted ones, and everything else does nothing. So variables, arrays and conditions have their
values, and no file is read, written or removed.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from megascratch.config.errors import UserError
from megascratch.config.megatron.options import option_of

LAUNCHERS = ("torchrun", "python", "python3", "ft_launcher")
STARTERS = ("srun", "mpirun", "nsys", "numactl", "env", "timeout", "uv")
"""Programs that start the program that is named behind their own words."""
SHELLS = ("bash", "sh", "sbatch")
DO_NOTHING = (
    "awk basename cat chmod cp cut date dirname find git grep head hostname ls mkdir mv nvidia-smi pip pip3 rm sed "
    "sleep sort tail touch tr wc which yq"
).split()
"""Programs that scripts run besides the launcher."""

SECONDS = 20
MARK = "megascratch: words of MODEL_ARGS follow"
RECORDER = """#!/bin/sh
[ -s "{words}" ] || [ "$1" = -c ] || printf '%s\\0' "$@" >> "{words}"
"""
STARTER = f"""#!/bin/sh
while [ $# -gt 0 ]; do
    case "$1" in
        {"|".join((*LAUNCHERS, *STARTERS, *SHELLS))}) exec "$@" ;;
    esac
    shift
done
"""
READER = """#!/bin/sh
while read -r line; do :; done
"""
"""In place of `tee`: what writes to a pipe must find a reader, or it is killed."""
SHELL = """#!/bin/sh
exec "{bash}" --noprofile --norc --restricted -f "$@"
"""


def flags_of_script(
    path: str | Path,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> list[str]:
    """The words that the script gives to Megatron-LM.

    Args:
        arguments: the arguments of a shell script.
        environment: its variables. Those of this process are not seen by it.

    Raises: UserError if there are none, or if the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if path.suffix in (".yaml", ".yml"):
        return _of_yaml(path, text)
    words = _of_shell(path, text, arguments, environment)
    if not words:
        raise UserError(
            f"{path} gives no flag to a launcher ({', '.join(LAUNCHERS)}) and sets no MODEL_ARGS"
        )
    return words


def _of_yaml(path: Path, text: str) -> list[str]:
    """The flags of a test recipe: `MODEL_ARGS: {--num-layers: 2, --bf16: true}`."""
    try:
        content = yaml.load(text, yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {str(error).splitlines()[0]}") from error
    arguments = content.get("MODEL_ARGS") if isinstance(content, dict) else None
    if not isinstance(arguments, dict):
        raise UserError(f"{path} has no MODEL_ARGS with a flag per line")
    words = []
    for name, value in arguments.items():
        if value is False or value is None:
            continue
        words.append(str(name))
        if value is not True:
            words += _values(str(name), value)
    return words


def _values(name: str, value: Any) -> list[str]:
    """The value of a flag in YAML as words of a command line."""
    if isinstance(value, list):
        return [str(item) for item in value]
    option = option_of(name)
    text = str(value)
    if option is not None and option.values in ("1", "?"):
        return [text]
    return text.strip("[]").split()


def _of_shell(
    path: Path, text: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> list[str]:
    bash = shutil.which("bash")
    if bash is None:
        raise UserError(f"{path} is a shell script, and there is no bash to read it")
    with tempfile.TemporaryDirectory() as folder:
        words = Path(folder, "words")
        programs = Path(folder, "programs")
        work = Path(folder, "work")
        for made in (programs, work):
            made.mkdir()
        for name in ("pretrain_gpt.py", "pretrain_mamba.py", "pretrain_hybrid.py"):
            (work / name).touch()  # scripts look for it
        for name in LAUNCHERS:
            _program(programs / name, RECORDER.format(words=words))
        for name in STARTERS:
            _program(programs / name, STARTER)
        for name in SHELLS:
            _program(programs / name, SHELL.format(bash=bash))
        _program(programs / "tee", READER)
        for name in DO_NOTHING:
            _program(programs / name, "#!/bin/sh\n")
        script = Path(folder, "script.sh")
        script.write_text(f"set -f\n{text}\nprintf '%s\\n' '{MARK}' ${{MODEL_ARGS[@]}}\n")
        try:
            done = subprocess.run(
                [bash, "--noprofile", "--norc", "--restricted", str(script), *arguments],
                cwd=work,
                env={**environment, "PATH": str(programs), "HOME": str(work), "PWD": str(work)},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise UserError(f"{path} does not come to its end in {SECONDS} s") from error
        launched = words.read_text().split("\0")[:-1] if words.exists() else []
    if launched:
        return _after_program(launched)
    _, found, rest = done.stdout.partition(MARK + "\n")
    return rest.split() if found else []


def _program(path: Path, text: str) -> None:
    path.write_text(text)
    os.chmod(path, 0o755)


def _after_program(words: Sequence[str]) -> list[str]:
    """The words behind the Python file or module that a launcher starts, which may be a launcher itself."""
    for at, word in enumerate(words):
        if word.endswith(".py"):
            return list(words[at + 1 :])
        if at and words[at - 1] == "-m" and not word.startswith("torch.distributed."):
            return list(words[at + 1 :])
    return list(words)
