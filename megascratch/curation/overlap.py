"""Detects exact duplicates, near duplicates (MinHash LSH) and contamination with evaluation texts.

Near duplicates: MinHash over word n-grams and locality-sensitive hashing (datasketch, an optional extra), with 13-grams
and a Jaccard similarity of 0.8 as in Gopher (arXiv 2112.11446, A.1.1). Decontamination: a shared 13-gram, as in
GPT-3 (arXiv 2005.14165, appendix C), where a shorter evaluation text of at least 8 words counts as one n-gram.
"""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from megascratch.config.errors import UserError
from megascratch.curation.quality import Reason

try:
    import datasketch
except ImportError:
    datasketch: Any = None  # type: ignore[no-redef]

SHORTEST = 8  # words of an evaluation text; a shorter one occurs in too many texts
HIGHEST = 0.9  # threshold of the LSH tables: closer to 1 they would have one band; above it the estimate decides
WORDS = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """Lower-case words without punctuation."""
    return WORDS.findall(text.lower())


def n_grams(words: Sequence[str], n: int) -> Iterator[bytes]:
    """Every run of n words; a shorter text is one n-gram."""
    for start in range(max(len(words) - n + 1, 1)):
        yield " ".join(words[start : start + n]).encode()


class ExactDuplicates:
    """Finds exact duplicates by sha256: 32 bytes of memory, plus overhead, for each different text."""

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def check(self, text: str, place: str) -> Reason | None:
        """A reason if the same text occurred before; else the text is remembered with its place."""
        digest = hashlib.sha256(text.encode()).digest()
        if digest in self._seen:
            return Reason("exact_duplicate", f"the text of {self._seen[digest]}")
        self._seen[digest] = place
        return None


class NearDuplicates:
    """Finds near duplicates by MinHash signatures (4 bytes x `permutations` and the tables for each kept text).

    Raises: UserError where datasketch is not installed, or a setting is out of range.
    """

    def __init__(self, threshold: float, n: int, permutations: int):
        if datasketch is None:
            raise UserError(
                "--near-duplicates needs datasketch, which is not installed: pip install 'megascratch[curate]'"
            )
        if not 0 < threshold <= 1 or n < 1 or permutations < 2:
            raise UserError(
                f"--similarity ({threshold:g}) must be in (0, 1], --shingle-words ({n}) at least 1 and "
                f"--permutations ({permutations}) at least 2"
            )
        self.threshold = threshold
        self.n = n
        self.permutations = permutations
        try:
            self._tables = datasketch.MinHashLSH(
                threshold=min(threshold, HIGHEST), num_perm=permutations
            )
        except ValueError as error:
            raise UserError(
                f"--permutations ({permutations}) are too few for --similarity {threshold:g}"
            ) from error
        self._signatures: dict[str, Any] = {}

    def check(self, text: str, place: str) -> Reason | None:
        """A reason if a similar text was kept before; else the text is remembered. The tables propose candidates, the
        estimated similarity decides."""
        signature = datasketch.MinHash(num_perm=self.permutations, seed=1)
        signature.update_batch(sorted(set(n_grams(words_of(text), self.n))))
        similar = []
        for other in self._tables.query(signature):
            similarity = signature.jaccard(self._signatures[other])
            if similarity >= self.threshold:
                similar.append((-similarity, other))
        if similar:
            distance, other = min(similar)  # the most similar one; of equal ones the first place
            return Reason("near_duplicate", f"similarity {-distance:.2f} with {other}")
        self._tables.insert(place, signature)
        self._signatures[place] = signature
        return None


class Contamination:
    """Finds texts that share an n-gram with an evaluation text."""

    def __init__(self, texts: Iterable[str], n: int):
        if n < SHORTEST:
            raise UserError(
                f"--decontaminate-words ({n}) must be at least {SHORTEST}: shorter n-grams are in too many texts"
            )
        self.texts = 0
        self.too_short = 0
        self._grams: dict[int, set[bytes]] = {}
        for text in texts:
            words = words_of(text)
            self.texts += 1
            if len(words) < SHORTEST:
                self.too_short += 1
            else:
                length = min(n, len(words))
                self._grams.setdefault(length, set()).update(n_grams(words, length))

    def check(self, text: str) -> Reason | None:
        """A reason if the text shares an n-gram with an evaluation text."""
        words = words_of(text)
        for length, grams in sorted(self._grams.items()):
            if len(words) < length:
                continue
            for gram in n_grams(words, length):
                if gram in grams:
                    return Reason(
                        "contaminated", f"shares {gram.decode()!r} with an evaluation text"
                    )
        return None
