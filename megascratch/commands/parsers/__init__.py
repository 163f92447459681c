"""The flags of each command, one file per command (`dry_run.py` for `dry-run`) with `parser() -> Parser`.

They import no torch and no other large library, so that help, completion and the refusal of a wrong flag take tenths of
a second. The work of a command is in `megascratch.commands.NAME`, which is imported when its flags are valid.
"""
