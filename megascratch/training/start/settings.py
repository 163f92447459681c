"""Settings of a run that keep every law: derived once, and checked all at once.

This part of a start needs no torch and opens no file of the run, so a wrong setting is refused at once. What the
settings leave to files and to the machine (`config.resolve.Found`) is added by `LegalSettings.resolve`.
"""

from typing import NamedTuple

from megascratch.config.errors import SettingError
from megascratch.config.fields import flat, with_fields
from megascratch.config.laws import broken_laws
from megascratch.config.load import Loaded, Origins, format_config
from megascratch.config.resolve import Found, ResolvedConfig, Values, derive, resolve_derived
from megascratch.config.settings import Config
from megascratch.training.start.files import missing_files


class LegalSettings(NamedTuple):
    """Settings that keep every law that can be checked without a file or a device."""

    given: Values
    """As the user gave them."""
    config: Config
    """With what follows from other settings and the number of processes."""
    world_size: int
    origins: Origins = Origins()
    """Where the given values come from."""

    def as_yaml(self) -> str:
        """The settings as `--config` takes them, on any number of ranks: what follows from others is a comment."""
        given = with_fields(self.config, self.given)
        return format_config(given, self.origins, flat(self.config))

    def resolve(self, found: Found) -> ResolvedConfig:
        """Adds what files and the machine say.

        Raises: SettingError with the laws that are broken by what was found.
        """
        added = found.values()
        derived = flat(self.config)
        broken = broken_laws({**self.given, **added}, {**derived, **added}, self.world_size)
        if broken:
            raise SettingError("\n".join(broken))
        return resolve_derived(derived, found)


def legal_settings(loaded: Loaded, world_size: int) -> LegalSettings:
    """Derives and checks the settings.

    Raises: SettingError with everything that is wrong with flags, file and laws, and each file that is missing.
    """
    given = flat(loaded.config)
    derived = derive(given, world_size)
    problems = loaded.problems + broken_laws(given, derived, world_size, loaded.unread)
    if problems:
        raise SettingError("\n".join([*problems, *missing_files(derived)]))
    config = with_fields(loaded.config, derived)
    return LegalSettings(given, config, world_size, loaded.origins)
