"""What Megatron-LM's preprocess_data_fast.py does, told again with the same libraries: the other side of a benchmark.

    JSONL --gigatoken's own reader and encoder--> one ragged array of all documents --awkward--> IndexedDatasetBuilder

As there, a spawned process does the work for one key and imports everything once more. Kinder to it than its own code:
no megatron.training and no transformers are imported, the ids are written in one piece and not by way of 128 processes,
and no end of document is appended, where the tool fails (its --append-eod names a module it does not import).

    python benchmarks/megatron_fast.py text.jsonl tokenizer.json PREFIX
"""

import multiprocessing
import sys
import time

import awkward
import gigatoken
import numpy as np
from megatron.core.datasets.indexed_dataset import DType, IndexedDatasetBuilder


def process(text: str, model: str, prefix: str) -> None:
    """Encodes one key and writes PREFIX.bin and PREFIX.idx; prints the seconds of work, imports not counted."""
    start = time.perf_counter()
    tokenizer = gigatoken.Tokenizer(model)
    documents = tokenizer.encode_files(gigatoken.JsonlFileSource([text], "text"))
    dtype = DType.optimal_dtype(tokenizer.vocab_size)
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    builder.data_file.write(np.asarray(awkward.flatten(documents), dtype=dtype).tobytes())
    builder.sequence_lengths.extend(np.asarray(awkward.num(documents, axis=1)).tolist())
    builder.document_indices.extend(range(1, len(documents) + 1))
    builder.finalize(f"{prefix}.idx")
    print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        pool.apply(process, sys.argv[1:])
