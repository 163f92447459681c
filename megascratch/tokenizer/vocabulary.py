"""Reads and writes byte-level BPE vocabularies in four file formats; every file is validated when it is read.

    tokenizer.json          Hugging Face: everything (split, merges, special tokens)
    *.tiktoken              tiktoken's ranks: one line `base64(token) rank` each; no split, no special tokens
    vocab.json merges.txt   GPT-2: tokens with ids, and merges in order; the split is GPT-2's
    *.json, a list          Megatron-LM's TikTokenizer: {"rank": 0, "token_bytes": base64, "token_str": text} each

Ranks merge the neighbours whose union has the lowest rank, whatever its two halves; merges name the halves. So ranks
are converted to all pairs of known halves, in the order of rank, and a word that is a token itself is not split.
"""

import base64
import binascii
import json
from pathlib import Path
from typing import Any, NamedTuple

from megascratch.config.errors import UserError
from megascratch.config.hub_names import tokenizer_hint
from megascratch.tokenizer.splits import Encoding, pre_tokenizer, split_of

LARGEST_FILE = 1 << 28  # bytes: the largest published vocabularies have 2**25
BEYOND_PLAIN_BPE = (
    "byte_fallback",
    "unk_token",
    "dropout",
    "continuing_subword_prefix",
    "end_of_word_suffix",
)
END_OF_TEXT = "<|endoftext|>"
MEGATRON_SPECIALS = 1000
MEGATRON_SPECIAL_TOKENS = ("<unk>", "<s>", "</s>", "<mask>", "<pad>", "<cls>", "<sep>")
MEGATRON_MOST_IDS = 1 << 17
"""The defaults of Megatron-LM's TikTokenizer."""


def _byte_characters() -> list[str]:
    """The printable character for each byte in GPT-2's files: the byte's own where Latin-1 has a printable one, else
    the next one from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = []
    following = 0x100
    for byte in range(256):
        if byte in printable:
            characters.append(chr(byte))
        else:
            characters.append(chr(following))
            following += 1
    return characters


CHARACTER_OF = _byte_characters()
BYTE_OF = {character: byte for byte, character in enumerate(CHARACTER_OF)}


class Vocabulary(NamedTuple):
    """A byte-level BPE vocabulary."""

    tokens: dict[bytes, int]
    merges: list[tuple[bytes, bytes]]
    """First merged first."""
    split: str
    specials: dict[str, int]
    normal_form: str | None = None
    whole_words: bool = False
    """A word that is a token becomes that token, even where merges do not lead to it."""

    def record(self) -> dict[str, Any]:
        """The content of a tokenizer.json."""
        vocab = {spell(token): number for token, number in self.tokens.items()} | self.specials
        added = []
        for name, number in sorted(self.specials.items(), key=_id_of):
            added.append(
                {
                    "id": number,
                    "content": name,
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            )
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": {"type": self.normal_form} if self.normal_form else None,
            "pre_tokenizer": pre_tokenizer(self.split),
            "post_processor": None,
            "decoder": {
                "type": "ByteLevel",
                "add_prefix_space": False,
                "trim_offsets": True,
                "use_regex": True,
            },
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": self.whole_words,
                "vocab": dict(sorted(vocab.items(), key=_id_of)),
                "merges": [[spell(left), spell(right)] for left, right in self.merges],
            },
        }


def _id_of(item: tuple[Any, int]) -> int:
    return item[1]


def spell(token: bytes) -> str:
    """The token in GPT-2's printable characters."""
    return "".join([CHARACTER_OF[byte] for byte in token])


def unspell(word: str) -> bytes | None:
    """The bytes of a word that `spell` wrote; None: it has other characters."""
    try:
        return bytes([BYTE_OF[character] for character in word])
    except KeyError:
        return None


def from_ranks(ranks: dict[bytes, int], encoding: Encoding, name: str) -> Vocabulary:
    """Converts tiktoken's ranks to merges. Raises: UserError where special tokens collide with tokens or their ids."""
    taken = set(ranks.values())
    for special, number in encoding.specials.items():
        if number in taken or special.encode() in ranks:
            raise UserError(
                f"{name}: special token {special} (id {number}) collides with a token of the vocabulary; "
                "name the encoding or the split that the file really has"
            )
    pairs = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left = ranks.get(token[:cut])
            right = ranks.get(token[cut:])
            if left is not None and right is not None:
                pairs.append((rank, left, right, cut, token))
    merges = [(token[:cut], token[cut:]) for _, _, _, cut, token in sorted(pairs)]
    return Vocabulary(
        ranks, merges, encoding.split, encoding.specials, encoding.normal_form, whole_words=True
    )


def from_record(record: dict[str, Any], name: str) -> Vocabulary:
    """The vocabulary of a tokenizer.json. Raises: UserError where it is not a byte-level BPE with a known split."""
    model = record["model"]
    normalizer = record.get("normalizer")
    split = split_of(record.get("pre_tokenizer"))
    is_plain = model.get("type") == "BPE" and not any(map(model.get, BEYOND_PLAIN_BPE))
    is_known = normalizer is None or normalizer.get("type") == "NFC"
    if split is None or not is_plain or not is_known:
        raise UserError(
            f"{name} is not a byte-level BPE with a split that other formats know; keep the tokenizer.json"
        )
    added = {token["content"]: token["id"] for token in record.get("added_tokens", [])}
    tokens = {unspell(word): number for word, number in model["vocab"].items() if word not in added}
    if None in tokens:
        raise UserError(
            f"{name}: a token of the vocabulary is not spelled in GPT-2's characters for bytes"
        )
    merges = [tuple(map(unspell, pair)) for pair in merge_pairs(model["merges"])]
    form = normalizer["type"] if normalizer else None
    whole_words = bool(model.get("ignore_merges"))
    return Vocabulary(tokens, merges, split, added, form, whole_words)  # type: ignore[arg-type]


def merge_pairs(merges: list[Any]) -> list[list[str]]:
    """Merges as pairs; older files write them as `left right`."""
    return [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in merges]


def inside(folder: Path, name: str) -> Path:
    """Path of a file in a folder, for files that the user did not name. A symbolic link may lead to another file of the
    folder, or of the repository in a Hugging Face cache (`snapshots/REVISION/` holds links into `blobs/`).

    Raises: UserError where a link leads out of the folder.
    """
    path = folder / name
    home = folder.resolve()
    if home.parent.name == "snapshots" and (home.parent.parent / "blobs").is_dir():
        home = home.parent.parent
    if path.is_symlink() and not path.resolve().is_relative_to(home):
        raise UserError(
            f"{path} is a link out of its folder, to {path.resolve()}: give that file by name if you want it"
        )
    return path


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises: UserError where it is too large for a vocabulary or cannot be read."""
    try:
        if not path.exists():
            raise UserError(
                f"--tokenizer-model {path} cannot be read: No such file or directory{tokenizer_hint(path)}"
            )
        if not path.is_file():
            raise UserError(f"--tokenizer-model {path} is not a regular file")
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise UserError(f"{path} has {size:,} bytes; a vocabulary has at most {LARGEST_FILE:,}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"--tokenizer-model {path} cannot be read: {error.strerror}") from error


def read_json(path: Path, kind: str) -> Any:
    """The content of a JSON file. Raises: UserError where it is not JSON."""
    try:
        return json.loads(read_bytes(path).decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a {kind}: it holds no JSON ({error})") from error


def read_ranks(path: Path) -> dict[bytes, int]:
    """Reads a *.tiktoken file. Raises: UserError naming the first invalid line, or the bytes that have no token."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            word, rank = line.split()
            token = base64.b64decode(word, validate=True)
            if not token or token in ranks or not 0 <= int(rank) < 1 << 31:
                raise ValueError
            ranks[token] = int(rank)
        except (ValueError, binascii.Error) as error:
            shown = line[:40].decode(errors="replace")
            raise UserError(
                f"{path}:{number} is not `base64(token) rank`, each once: {shown!r}; give a file in tiktoken's format"
            ) from error
    if len(set(ranks.values())) < len(ranks):
        raise UserError(f"{path}: two tokens have the same rank; each needs its own")
    require_bytes(ranks, str(path))
    return ranks


def is_megatron_ranks(path: Path) -> bool:
    """Whether a file is a list of ranks in Megatron-LM's format, by its name and its first bytes."""
    if path.suffix != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith(b"[")


def read_megatron_ranks(
    path: Path,
    vocab_size: int | None,
    specials: int,
    names: tuple[str, ...],
    split: str,
) -> Vocabulary:
    """Reads the list of ranks of Megatron-LM's TikTokenizer (megatron/core/tokenizers, text/libraries).

    Args:
        vocab_size: ids in total; the list is cut there. Default: 131072, or as many as there are.
        specials: ids at the beginning that are for special tokens; those without a name are <SPECIAL_7> and so on.

    Raises: UserError for a list of another form, names that are missing or repeated, and too few tokens.
    """
    missing = [name for name in MEGATRON_SPECIAL_TOKENS if name not in names]
    if missing or len(set(names)) < len(names) or len(names) > specials:
        raise UserError(
            f"the special tokens {' '.join(names)} must be different, at most {specials} "
            f"(--tiktoken-num-special-tokens), and contain {' '.join(missing or MEGATRON_SPECIAL_TOKENS)}"
        )
    listed = read_json(path, "list of ranks")
    size = vocab_size or min(MEGATRON_MOST_IDS, len(listed) + specials)
    if not specials < size <= len(listed) + specials:
        raise UserError(
            f"--vocab-size {size} must be above the {specials} special tokens and at most "
            f"{len(listed) + specials}: {path} has {len(listed)} tokens"
        )
    tokens: dict[bytes, int] = {}
    for rank, entry in enumerate(listed[: size - specials]):
        try:
            token = base64.b64decode(entry["token_bytes"], validate=True)
            if entry["rank"] != rank or not token or token in tokens:
                raise ValueError
        except (TypeError, KeyError, ValueError, binascii.Error) as error:
            raise UserError(
                f'{path}: entry {rank} is not {{"rank": {rank}, "token_bytes": base64 of a new token, ...}}: '
                f"{str(entry)[:60]!r}"
            ) from error
        tokens[token] = specials + rank
    require_bytes(tokens, str(path))
    fillers = [f"<SPECIAL_{number}>" for number in range(len(names), specials)]
    words = {name: number for number, name in enumerate([*names, *fillers])}
    return from_ranks(tokens, Encoding(split, words), str(path))


def read_gpt2(vocab_file: Path, merge_file: Path) -> Vocabulary:
    """Reads GPT-2's two files; `<|endoftext|>` is special where the vocabulary has it. Raises: UserError."""
    vocab = read_json(vocab_file, "GPT-2 vocabulary")
    if not isinstance(vocab, dict) or not all(type(number) is int for number in vocab.values()):
        raise UserError(f"{vocab_file} is not a GPT-2 vocabulary: it must hold {{token: id, ...}}")
    specials = {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}
    tokens = {unspell(word): number for word, number in vocab.items() if word not in specials}
    if None in tokens:
        raise UserError(f"{vocab_file}: a token is not spelled in GPT-2's characters for bytes")
    require_bytes(tokens, str(vocab_file))
    merges = []
    lines = read_bytes(merge_file).decode(errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        if not line or (number == 1 and line.startswith("#version")):
            continue
        halves = [unspell(half) for half in line.split(" ")]
        if len(halves) != 2 or None in halves or b"".join(halves) not in tokens:  # type: ignore[arg-type]
            raise UserError(
                f"{merge_file}:{number} is not two halves of a token of {vocab_file}: {line[:40]!r}"
            )
        merges.append(tuple(halves))
    return Vocabulary(tokens, merges, "gpt2", specials)  # type: ignore[arg-type]


def require_bytes(tokens: object, name: str) -> None:
    """Raises: UserError where a byte has no token: texts would silently lose it."""
    missing = [byte for byte in range(256) if bytes([byte]) not in tokens]  # type: ignore[operator]
    if missing:
        raise UserError(
            f"{name} has no token for {len(missing)} of the 256 bytes (the first is 0x{missing[0]:02X}): "
            "text with them would be lost; train with all 256 bytes"
        )


def write_ranks(vocabulary: Vocabulary) -> bytes:
    """The content of a *.tiktoken file, which cannot store the split and the special tokens."""
    lines = []
    for token, rank in sorted(vocabulary.tokens.items(), key=_id_of):
        lines.append(base64.b64encode(token) + f" {rank}\n".encode())
    return b"".join(lines)
