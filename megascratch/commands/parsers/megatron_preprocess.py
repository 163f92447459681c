"""Translates the flags of Megatron-LM's tools/preprocess_data.py to those of `megascratch preprocess`.

Most have the same name and meaning. The options of a tokenizer are rows of the table of all options of Megatron-LM
(`config/megatron/flags.csv`), which says what they become in training, too.
"""

from collections.abc import Sequence

from megascratch.config.errors import SettingError
from megascratch.config.megatron.command_line import Given, divided
from megascratch.config.verbosity import note

OF_A_TOKENIZER = (
    "vocab-size",
    "padded-vocab-size",
    "no-pad-vocab-size",
    "vocab-file",
    "merge-file",
    "vocab-extra-ids",
    "tokenizer-type",
    "tokenizer-model",
    "tokenizer-metadata",
    "tokenizer-special-tokens",
    "tiktoken-pattern",
    "tiktoken-num-special-tokens",
    "tokenizer-sentencepiece-legacy",
    "no-tokenizer-sentencepiece-ignore-extra-whitespaces",
    "tokenizer-hf-no-use-fast",
    "tokenizer-hf-no-include-special-tokens",
    "trust-remote-code",
    "null-tokenizer-eod-id",
    "null-tokenizer-pad-id",
    "chat-template",
    "use-gigatoken",
)
"""The options that Megatron-LM's script shares with training."""

ONLY_OF_TRAINING = ("padded-vocab-size", "no-pad-vocab-size")
"""Options about the rows of the embedding, which token files do not have."""

SPECIAL_TOKENS = (
    "the text of a special token stays text; with --parse-special-tokens it becomes the token, "
    "as in Megatron-LM"
)
SENTENCES = (
    "sentences are split by the library sentencex; Megatron-LM uses NLTK, which may cut elsewhere"
)


def translated(words: Sequence[str]) -> list[str]:
    """The flags of `megascratch preprocess`; notices are printed.

    Raises: SettingError for options that are not there, or belong to another kind of model.
    """
    line = divided(words)
    kept = list(line.ours)
    refused = list(line.problems)
    without_effect: list[str] = []
    for name, given in line.given.items():
        kind = given.option.kind
        if name in ONLY_OF_TRAINING or (given.is_neutral and kind != "same"):
            without_effect.append(given.spelling)
        elif name not in OF_A_TOKENIZER or kind == "same":
            kept += [given.spelling.replace("_", "-"), *given.words]
        elif kind in ("always", "none"):
            without_effect.append(given.spelling)
        elif kind == "notice":
            note(f"notice: {given.typed}: {given.option.words}")
        else:
            refused.append(_refusal(given))
    if refused:
        raise SettingError("\n".join(refused))
    if without_effect:
        note(f"notice: no effect on token files: {', '.join(without_effect)}")
    if "--parse-special-tokens" not in kept:
        note(f"notice: {SPECIAL_TOKENS}")
    if "--split-sentences" in kept:
        note(f"notice: {SENTENCES}")
    return kept


def _refusal(given: Given) -> str:
    if given.option.kind == "feature":
        return f"{given.typed} is not there yet ({given.option.words})"
    return f"{given.typed} belongs to another kind of model: {given.option.words}"
