"""The laws of the data and its vocabulary; see `laws/__init__.py` for how a law works."""

import re
from collections.abc import Callable

from megascratch.config.registry import is_registered


def one_source(
    data_path: list[str] | None,
    train_data_path: list[str] | None,
    valid_data_path: list[str] | None,
    test_data_path: list[str] | None,
    mock_data: bool,
) -> str | None:
    """Text comes from data-path, from a path per split, or is synthetic."""
    own = {
        "train-data-path": train_data_path,
        "valid-data-path": valid_data_path,
        "test-data-path": test_data_path,
    }
    per_split = [name for name, path in own.items() if path]
    given = per_split[:1]
    if data_path:
        given.insert(0, "data-path")
    if mock_data:
        given.append("mock-data")
    if not given:
        return "there is no data: give data-path, train-data-path or mock-data"
    if len(given) > 1:
        return f"the data comes from {' and '.join(given)}: keep only one of them"
    if per_split and not train_data_path:
        return f"{per_split[0]} needs train-data-path, too: give both, or data-path with a split"
    return None


def lists_are_not_empty(
    data_path: list[str] | None,
    train_data_path: list[str] | None,
    valid_data_path: list[str] | None,
    test_data_path: list[str] | None,
) -> str | None:
    """A path that is given names at least one file."""
    paths = {
        "data": data_path,
        "train-data": train_data_path,
        "valid-data": valid_data_path,
        "test-data": test_data_path,
    }
    empty = [f"{name}-path" for name, path in paths.items() if path is not None and not any(path)]
    if empty:
        return f"{', '.join(empty)} is empty: give at least one prefix of a .bin/.idx pair"
    return None


def stages_follow_one_another(
    data_stages: list[str] | None, data_path: list[str] | None, train_data_path: list[str] | None
) -> str | None:
    """Each stage begins at a later sample than the previous one, and names its corpora."""
    if data_stages is None:
        return None
    if not data_path and not train_data_path:
        return "data-stages change the blend of data-path or train-data-path: give the first blend there"
    before = 0
    for number, stage in enumerate(data_stages):
        first, *words = stage.split() or [""]
        if not re.fullmatch(r"\d+", first) or not words:
            return (
                f"data-stages: stage {number + 1} ({stage!r}) must be SAMPLE weight prefix weight prefix ..., "
                "for instance '100000 0.5 web 0.5 books'"
            )
        if int(first) <= before:
            previous = (
                f"stage {number} begins at {before}" if number else "the first blend begins at 0"
            )
            return (
                f"data-stages: stage {number + 1} begins at sample {first}, but {previous}: "
                f"begin at {before + 1} or later"
            )
        before = int(first)
    return None


def split_is_shares(split: str | None, data_path: list[str] | None, mock_data: bool) -> str | None:
    """Split is up to three proportions of data-path, of which the first is above 0."""
    if split is None:
        return None
    if not data_path and not mock_data:
        return f"split ({split}) divides data-path, which is not given: remove split, or give data-path"
    shares = [share.strip() for share in split.split(",")]
    numbers = [float(share) for share in shares if re.fullmatch(r"\d+\.?\d*|\.\d+", share)]
    if 1 <= len(numbers) == len(shares) <= 3 and numbers[0] > 0:
        return None
    return f"split ({split}) must be up to three numbers, TRAIN,VALID,TEST, the first above 0: for instance 969,30,1"


def vocabulary_is_known(
    tokenizer_type: str | None,
    tokenizer_model: str | None,
    vocab_file: str | None,
    vocab_size: int | None,
) -> str | None:
    """The vocabulary comes from a tokenizer's files, a tokenizer without one, or vocab-size."""
    without_file = ("ByteTokenizer", "NullTokenizer")
    own = tokenizer_type is not None and is_registered("tokenizer", tokenizer_type)
    has_file = tokenizer_model is not None or vocab_file is not None
    if tokenizer_type not in (None, *without_file) and not has_file and not own:
        return f"tokenizer-type {tokenizer_type} needs tokenizer-model, the tokenizer's file"
    if tokenizer_type in without_file and tokenizer_model is not None:
        return f"tokenizer-type {tokenizer_type} needs no file: remove tokenizer-model ({tokenizer_model})"
    if tokenizer_type == "NullTokenizer" and vocab_size is None:
        return "tokenizer-type NullTokenizer needs vocab-size"
    if tokenizer_type is None and not has_file and vocab_size is None:
        return "the vocabulary is unknown: give tokenizer-model, tokenizer-type ByteTokenizer, or vocab-size"
    return None


def gpt2_tokenizer_has_two_files(
    vocab_file: str | None,
    merge_file: str | None,
    tokenizer_model: str | None,
    tokenizer_type: str | None,
) -> str | None:
    """A GPT-2 tokenizer is named by both of its files, and by nothing else."""
    if vocab_file is None and merge_file is None:
        return None
    if tokenizer_type not in (None, "GPT2BPETokenizer"):
        return (
            f"tokenizer-type {tokenizer_type} does not read vocab-file and merge-file: use GPT2BPETokenizer, "
            "or remove both files"
        )
    if merge_file is None:
        return f"vocab-file ({vocab_file}) needs merge-file: a GPT-2 tokenizer has two files"
    if vocab_file is None:
        return f"merge-file ({merge_file}) needs vocab-file: a GPT-2 tokenizer has two files"
    if tokenizer_model is not None:
        return (
            f"tokenizer-model ({tokenizer_model}) and vocab-file ({vocab_file}) both name a tokenizer: "
            "remove tokenizer-model, or remove vocab-file and merge-file"
        )
    return None


def remote_data_has_a_cache(
    data_path: list[str] | None,
    train_data_path: list[str] | None,
    valid_data_path: list[str] | None,
    test_data_path: list[str] | None,
    data_stages: list[str] | None,
    data_cache_path: str | None,
) -> str | None:
    """Data in object storage is read through a cache folder on this machine."""
    words: list[str] = []
    for path in (data_path, train_data_path, valid_data_path, test_data_path):
        words += path or []
    for stage in data_stages or []:
        words += stage.split()
    remote = [word for word in words if "://" in word]
    if remote and data_cache_path is None:
        return f"{remote[0]} is read through a cache on this machine: give data-cache-path, a folder with room for it"
    return None


def megatrons_order_has_numpys_seeds(data_order: str, seed: int) -> str | None:
    """Megatron's shuffles are NumPy's, whose seeds have 32 bits."""
    if data_order == "megatron" and not 0 <= seed < 1 << 32:
        return f"data-order megatron needs a seed from 0 to {(1 << 32) - 1}, not {seed}: use {seed % (1 << 32)}"
    return None


def stages_need_the_keyed_order(data_order: str, data_stages: list[str] | None) -> str | None:
    """Megatron has no stages: its order is made for one blend."""
    if data_order == "megatron" and data_stages:
        return "data-stages cannot be combined with data-order megatron: remove one of them"
    return None


def packing_needs_the_keyed_order(data_order: str, packing: str) -> str | None:
    """Every other order concatenates documents."""
    if data_order != "keyed" and packing != "concatenate":
        return (
            f"packing {packing} cannot be combined with data-order {data_order}: remove one of them"
        )
    return None


def fill_in_middle_has_its_ids(
    fim_rate: float,
    fim_prefix_id: int | None,
    fim_middle_id: int | None,
    fim_suffix_id: int | None,
    fim_prefix_token: str | None,
    fim_middle_token: str | None,
    fim_suffix_token: str | None,
    vocab_size: int | None,
) -> str | None:
    """Three different ids of the vocabulary, or tokens of the tokenizer by name, mark the parts of a document."""
    ids = {
        "fim-prefix": fim_prefix_id,
        "fim-middle": fim_middle_id,
        "fim-suffix": fim_suffix_id,
    }
    tokens = {
        "fim-prefix": fim_prefix_token,
        "fim-middle": fim_middle_token,
        "fim-suffix": fim_suffix_token,
    }
    for part, number in ids.items():
        if number is not None and tokens[part] is not None:
            return (
                f"{part}-id ({number}) and {part}-token ({tokens[part]}) both name it: remove one"
            )
    missing = [f"{part}-id" for part in ids if ids[part] is None and tokens[part] is None]
    if fim_rate and missing:
        return f"fim-rate ({fim_rate}) needs {', '.join(missing)}"
    if len(missing) < len(ids) and not fim_rate:
        return "fim-prefix-id, fim-middle-id and fim-suffix-id have no effect with fim-rate 0: raise it, or remove them"
    words = [word for word in tokens.values() if word is not None]
    if len(set(words)) < len(words):
        return f"the fim tokens ({', '.join(words)}) must differ: give each part its own"
    known = [number for number in ids.values() if number is not None]
    ids_text = ", ".join(map(str, known))
    if len(set(known)) < len(known):
        return f"fim-prefix-id, fim-middle-id and fim-suffix-id ({ids_text}) must differ: give each its own id"
    if vocab_size is not None and any(number >= vocab_size for number in known):
        return f"fim ids ({ids_text}) must be ids of the vocabulary ({vocab_size} ids): use 0 to {vocab_size - 1}"
    return None


LAWS: list[Callable[..., str | None]] = [
    one_source,
    lists_are_not_empty,
    stages_follow_one_another,
    split_is_shares,
    vocabulary_is_known,
    gpt2_tokenizer_has_two_files,
    remote_data_has_a_cache,
    megatrons_order_has_numpys_seeds,
    stages_need_the_keyed_order,
    packing_needs_the_keyed_order,
    fill_in_middle_has_its_ids,
]
