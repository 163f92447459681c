"""Pre-tokenizer splits of byte-level BPE, and the special tokens of published vocabularies.

A split is a regular expression whose consecutive matches are the entire text; merges never cross a match. The
expressions are those that the models' authors published (GPT-2's encoder.py, tiktoken's openai_public.py, the
tokenizer.json files of Llama 3 and Qwen 2), written without possessive quantifiers: Hugging Face's regular expressions
interpret `{1,3}+` differently, and the matches are the same.
"""

from typing import Any, NamedTuple

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE_WORD = r"[^\r\n\p{L}\p{N}]?"

SPLITS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}",
    "llama3": rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}",
    "qwen2": rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}|{_SIGNS}|{_SPACES}",
    "o200k": rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_BEFORE_WORD}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
    "megatron-v1": rf"{_LETTERS}|\p{{N}}|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",
    "megatron-v2": rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+|{_BEFORE_WORD}{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}",
}
"""Name -> expression; `megatron-...` are the two `--tiktoken-pattern` of Megatron's TikTokenizer."""


def pre_tokenizer(split: str) -> dict[str, Any]:
    """The `pre_tokenizer` of a tokenizer.json for a split."""
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": split == "gpt2",
    }
    if split == "gpt2":
        return to_bytes
    cut = {
        "type": "Split",
        "pattern": {"Regex": SPLITS[split]},
        "behavior": "Isolated",
        "invert": False,
    }
    return {"type": "Sequence", "pretokenizers": [cut, to_bytes]}


def split_of(pre_tokenizer_record: object) -> str | None:
    """The name of the split in a tokenizer.json; None: it is not one of SPLITS."""
    essence = _essence(pre_tokenizer_record)
    for name in SPLITS:
        if _essence(pre_tokenizer(name)) == essence:
            return name
    return None


def _essence(record: object) -> object:
    """The record without the options that do not change the ids."""
    if isinstance(record, dict):
        return {key: _essence(value) for key, value in record.items() if key != "trim_offsets"}
    if isinstance(record, list):
        return [_essence(value) for value in record]
    return record


class Encoding(NamedTuple):
    """What a published rank file does not contain: its split and its special tokens."""

    split: str
    specials: dict[str, int]
    normal_form: str | None = None
    """Unicode normalisation before the split, such as NFC."""


_END = "<|endoftext|>"
_LLAMA3 = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(4)),
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|reserved_special_token_4|>",
    "<|eot_id|>",
    *(f"<|reserved_special_token_{number}|>" for number in range(5, 251)),
]

ENCODINGS = {
    "r50k_base": Encoding("gpt2", {_END: 50256}),
    "p50k_base": Encoding("gpt2", {_END: 50256}),
    "cl100k_base": Encoding(
        "cl100k",
        {
            _END: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": Encoding("o200k", {_END: 199999, "<|endofprompt|>": 200018}),
    "llama3": Encoding("llama3", {name: id for id, name in enumerate(_LLAMA3, 128000)}),
    "qwen2": Encoding("qwen2", {_END: 151643, "<|im_start|>": 151644, "<|im_end|>": 151645}, "NFC"),
}
FILE_NAMES = {f"{name}.tiktoken": name for name in ENCODINGS} | {"qwen.tiktoken": "qwen2"}
"""Names under which the authors publish rank files (Llama 3's is called tokenizer.model, as many others are)."""
