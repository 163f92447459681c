"""The flags of `megascratch megatron-flags`."""

from megascratch.commands.parsers.base import Parser

COMMANDS = {"explain": "say what each flag of a command line or script means here"}
NOTE = (
    "A shell script is read, not run: launchers are replaced, and no other program is found. Words behind the "
    "script are its arguments. A YAML file needs MODEL_ARGS. The exit code is 0 if every flag is understood, else 1."
)
EXAMPLES = (
    "megascratch megatron-flags explain --swiglu --disable-bias-linear",
    "megascratch megatron-flags explain train_gpt3_175b_distributed.sh",
    "megascratch megatron-flags explain --json model_config.yaml",
)


def parser() -> Parser:
    """The parser of the command."""
    made = Parser("megascratch megatron-flags", "Explains flags of Megatron-LM.", EXAMPLES)
    add = made.add_commands(COMMANDS)
    explain = add("explain", examples=EXAMPLES, note=NOTE, settings_help=_words)
    explain.add_argument("--json", action="store_true", help="print the answer as JSON")
    return made


def _words() -> str:
    return """\
what to explain:
  FLAGS...                flags of Megatron-LM with their values
  SCRIPT [ARGUMENTS...]   a shell script or a YAML file"""
