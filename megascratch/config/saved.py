"""The settings that a checkpoint carries (nested dicts, as `dataclasses.asdict` gives them) in, a `Config` out."""

from typing import Any

from megascratch.config.errors import UserError
from megascratch.config.fields import SECTION_OF, with_fields
from megascratch.config.settings import Config


def config_from_dict(saved: dict[str, Any]) -> Config:
    """Settings that are not in `saved` (it is older than they are) have their defaults.

    Raises: UserError for a setting that this version does not know: ignoring it could change the model.
    """
    values = {name: value for section in saved.values() for name, value in section.items()}
    unknown = sorted(values.keys() - SECTION_OF.keys())
    if unknown:
        raise UserError(
            f"the checkpoint has settings that this version does not know: {', '.join(unknown)}; "
            f"read it with the version that wrote it"
        )
    return with_fields(Config(), values)
