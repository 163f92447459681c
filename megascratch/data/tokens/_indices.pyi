"""Types of the C++ extension csrc/; indices_python.py says what the functions do."""

import mmap

import numpy as np

class TokenFile:
    def __init__(
        self,
        bytes: np.ndarray,
        code: int,
        lengths: np.ndarray,
        pointers: np.ndarray,
        checked: np.ndarray,
        limit: int,
    ) -> None: ...
    @property
    def bytes(self) -> np.ndarray: ...
    @property
    def code(self) -> int: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def pointers(self) -> np.ndarray: ...
    @property
    def checked(self) -> np.ndarray: ...
    @property
    def limit(self) -> int: ...

def sound_index(raw: mmap.mmap | bytes, bin_bytes: int) -> bool: ...
def permutation(count: int, key: int) -> np.ndarray: ...
def legacy_shuffle(items: np.ndarray, state: np.ndarray) -> None: ...
def legacy_draws(place: int, count: int, state: np.ndarray) -> np.ndarray: ...
def sample_index(
    lengths: np.ndarray, order: np.ndarray, seq_length: int, keep_partial: bool, start: int = 0
) -> np.ndarray: ...
def sample_rows(
    lengths: np.ndarray,
    order: np.ndarray,
    seq_length: int,
    place: int,
    offset: int,
    rows: int,
    wide: bool,
) -> np.ndarray: ...
def pieces_between(
    lengths: np.ndarray,
    order: np.ndarray,
    place: int,
    offset: int,
    last_place: int,
    last_offset: int,
) -> np.ndarray: ...
def read_pieces(file: TokenFile, pieces: np.ndarray) -> np.ndarray | None: ...
def best_fit(
    lengths: np.ndarray, first: int, stop: int, seq_length: int
) -> tuple[np.ndarray, np.ndarray]: ...
def blend(
    weights: np.ndarray, taken: np.ndarray, limits: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]: ...
