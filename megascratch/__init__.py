"""megascratch as a library: everything that a program or a notebook needs, loaded when it is first used.

    import megascratch as ms

    config = ms.Config("mine.yaml", lr=1e-3, train_iters=200)
    result = ms.pretrain(config, nproc_per_node=2)
    model = ms.load(result.output_dir)
    print(model.generate("def main("))

This module needs neither torch nor numpy. `__init__.pyi` has the same names with their types.
"""

import importlib
from typing import Any

_PLACES = {
    "Config": ("megascratch.api.run_config", "RunConfig"),
    "RunFailed": ("megascratch.api.training", "RunFailed"),
    "SettingError": ("megascratch.config.errors", "SettingError"),
    "TokenDataset": ("megascratch.api.token_dataset", "TokenDataset"),
    "Tokenizer": ("megascratch.api.text_tokenizer", "TextTokenizer"),
    "UserError": ("megascratch.config.errors", "UserError"),
    "dry_run_rank": ("megascratch.api.proof", "dry_run_rank"),
    "load": ("megascratch.api.language_model", "load"),
    "preprocess": ("megascratch.api.token_dataset", "preprocess"),
    "pretrain": ("megascratch.api.training", "pretrain"),
    "register": ("megascratch.config.registry", "register"),
    "verify": ("megascratch.api.proof", "verify"),
}
"""Public name -> the module that has it, and its name there."""

__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.import_module("megascratch.runtime.versions").version()
    if name not in _PLACES:
        raise AttributeError(f"module 'megascratch' has no attribute '{name}'")
    module, attribute = _PLACES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted(__all__)
