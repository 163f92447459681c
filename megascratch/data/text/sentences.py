"""Splits a text into sentences by the rules of a language (the library sentencex, which needs no download)."""

from collections.abc import Callable

from megascratch.config.errors import UserError
from megascratch.data.text.sources import needed

LANGUAGES = {  # the names that Megatron's --lang takes, those of NLTK
    "czech": "cs",
    "danish": "da",
    "dutch": "nl",
    "english": "en",
    "estonian": "et",
    "finnish": "fi",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "italian": "it",
    "malayalam": "ml",
    "norwegian": "no",
    "polish": "pl",
    "portuguese": "pt",
    "russian": "ru",
    "slovene": "sl",
    "spanish": "es",
    "swedish": "sv",
    "turkish": "tr",
}


def splitter(language: str, keep_newlines: bool) -> Callable[[str], list[str]]:
    """A function that splits a text. `keep_newlines`: the sentences joined are the text; else they are stripped.

    Raises: UserError where the library is missing.
    """
    segment = needed("sentencex", "sentences", "--split-sentences").segment
    code = language_code(language)
    if keep_newlines:
        return lambda text: list(segment(code, text))
    return lambda text: [bare for sentence in segment(code, text) if (bare := sentence.strip())]


def language_code(language: str) -> str:
    """The ISO 639 code of a language. Raises: UserError for a word that is neither a code nor a known name."""
    if language.lower() in LANGUAGES:
        return LANGUAGES[language.lower()]
    if language.isascii() and language.islower() and len(language) in (2, 3):
        return language
    raise UserError(
        f"--lang {language} is neither a language code (en, de, ...) nor one of {', '.join(LANGUAGES)}"
    )
