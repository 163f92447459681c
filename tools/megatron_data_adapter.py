"""A plugin of pytest under which Megatron-LM's unit tests for data meet the writers and tools of this toolkit.

`tools/megatron_data_tests.py` loads it. CUDA calls are stubbed, NCCL becomes gloo, `IndexedDatasetBuilder` writes with
our `TokenWriter`, the scripts that make token files are ours, and files below /opt/data are those of MEGASCRATCH_WORLD.
Readers, data sets and tokenizers stay Megatron-LM's.
"""

import builtins
import importlib.util
import os
import runpy
import subprocess
import sys
import typing
from collections import namedtuple
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
import typing_extensions

from megascratch.data.tokens.token_files import TokenReader, TokenWriter

HERE = Path(__file__).parent
WORLD = Path(os.environ["MEGASCRATCH_WORLD"])
REPO = Path(os.environ["MEGATRON_REPO"])
STANDS_FOR = {
    "/opt/data/tokenizers/megatron/gpt2-vocab.json": WORLD / "vocab.json",
    "/opt/data/tokenizers/megatron/gpt2-merges.txt": WORLD / "merges.txt",
    "/opt/data/tokenizers/huggingface": WORLD / "hub",
    "/opt/data/datasets/dclm/dclm.jsonl": WORLD / "texts.jsonl",
    "gpt2": WORLD / "gpt2",
}
"""A file or name in the tests -> the file that stands for it."""


def stand_in(word: Any) -> Any:
    """The file that stands for one of the tests."""
    return str(STANDS_FOR[word]) if word in STANDS_FOR else word


class Builder:
    """The verbs of Megatron-LM's IndexedDatasetBuilder on our writer."""

    def __init__(self, bin_path: str, dtype: Any = np.int32, multimodal: bool = False):
        if multimodal:
            pytest.skip("token files with a mode for each sequence are not written here")
        self._dtype = dtype
        self._writer = TokenWriter(bin_path.removesuffix(".bin"), dtype)
        self._items: list[np.ndarray] = []

    def add_item(self, tensor: Any, mode: int = 0) -> None:
        self._items.append(np.array(tensor.numpy(), dtype=self._dtype))

    def end_document(self) -> None:
        lengths = [len(item) for item in self._items]
        ids = np.concatenate([np.empty(0, self._dtype), *self._items])
        self._writer.add_document(ids, lengths)
        self._items.clear()

    def add_document(self, tensor: Any, lengths: Sequence[int], modes: Any = None) -> None:
        self._writer.add_document(np.array(tensor, dtype=self._dtype), lengths)

    def add_documents(
        self, documents: Any, modes: Any = None, eod_token: int | None = None, **_: Any
    ) -> None:
        end = [] if eod_token is None else [eod_token]
        for document in documents:
            ids = np.concatenate([np.asarray(document), np.array(end)]).astype(self._dtype)
            self._writer.add_document(ids, [len(ids)])

    def add_index(self, prefix: str) -> None:
        reader = TokenReader(prefix)
        documents = reader.documents
        for first, stop in zip(documents[:-1].tolist(), documents[1:].tolist(), strict=True):
            sequences = [reader.get(number) for number in range(first, stop)]
            lengths = [len(sequence) for sequence in sequences]
            ids = np.concatenate([np.empty(0, reader.dtype), *sequences])
            self._writer.add_document(ids, lengths)

    def finalize(self, idx_path: str) -> None:
        self._writer.finish()


def _stub_cuda() -> None:
    """One device that does nothing; process groups are those of a CPU."""
    cuda: Any = torch.cuda
    cuda.set_device = lambda *_: None
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    original = torch.distributed.init_process_group

    def on_cpu(*positional: Any, **named: Any) -> None:
        named["backend"] = "gloo"
        original(*positional[1:], **named)

    torch.distributed.init_process_group = on_cpu


def _stub_triton() -> None:
    """Megatron-LM's modules of CUDA kernels get a triton that does nothing; torch still finds none."""
    original = builtins.__import__
    stub = MagicMock(__version__="3.0.0")

    def import_module(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:
        importer = str((globals or {}).get("__file__"))
        if name.split(".")[0] == "triton" and importer.startswith(str(REPO)):
            return stub
        return original(name, globals, *rest, **named)

    if importlib.util.find_spec("triton") is None:
        builtins.__import__ = import_module


def _stub_object_store() -> None:
    """A client of object stores, if none is installed, that the tests fill in."""
    if importlib.util.find_spec("multistorageclient") is not None:
        return
    client: Any = ModuleType("multistorageclient")
    client.types = ModuleType("multistorageclient.types")
    client.types.Range = namedtuple("Range", ["offset", "size"])
    client.os = os
    client.open = open
    sys.modules[client.__name__] = client
    sys.modules[client.types.__name__] = client.types


@pytest.fixture(autouse=True)
def object_store(request: pytest.FixtureRequest) -> Iterator[None]:
    """The client is switched on for the test that reads through it, as --enable-msc does."""
    from megatron.core.msc_utils import MultiStorageClientFeature

    if request.node.name == "test_bin_reader":
        MultiStorageClientFeature.enable()
    yield
    MultiStorageClientFeature.disable()


def _take_compiled_helpers() -> None:
    """Takes the compiled helpers of the installed megatron-core, so that nothing is built inside of the repository."""
    name = "megatron.core.datasets.helpers_cpp"
    for folder in map(Path, sys.path):
        if folder.resolve() == REPO:
            continue
        for path in folder.glob("megatron/core/datasets/helpers_cpp*.so"):
            spec = importlib.util.spec_from_file_location(name, path)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[name] = module
            from megatron.core.datasets import utils

            utils.compile_helpers = lambda: None
            return


def _stub_downloads() -> None:
    """Vocabularies come from WORLD, not from the network."""
    import requests
    from tests.test_utils.python_scripts import download_unit_tests_dataset as download
    from transformers import AutoTokenizer

    def get(url: str, **_: Any) -> SimpleNamespace:
        file = "merges.txt" if "merges" in url else "vocab.json"
        return SimpleNamespace(content=(WORLD / file).read_bytes())

    def from_pretrained(pretrained_model_name_or_path: str, **_: Any) -> Any:
        return original(stand_in(pretrained_model_name_or_path))

    original = AutoTokenizer.from_pretrained
    requests.get = get
    AutoTokenizer.from_pretrained = from_pretrained
    download.download_and_extract_asset = lambda **_: None


def _put_our_writer() -> None:
    from megatron.core.datasets import indexed_dataset, utils

    indexed_dataset.IndexedDatasetBuilder = Builder
    original = utils.get_blend_from_list
    utils.get_blend_from_list = lambda words: original(words and list(map(stand_in, words)))


def _put_our_tools() -> None:
    """The scripts that make token files are ours; Megatron-LM's Encoder stays, which says what they must hold."""
    from tools import merge_datasets, preprocess_data

    preprocess_data.main = _tool("preprocess_data.py")
    merge_datasets.main = _tool("merge_datasets.py")
    get_args = preprocess_data.get_args

    def args_of_stand_ins() -> Any:
        sys.argv[1:] = map(stand_in, sys.argv[1:])
        return get_args()

    preprocess_data.get_args = args_of_stand_ins
    original = runpy.run_path

    def run_path(path: str, **named: Any) -> Any:
        if path.endswith("tools/preprocess_data.py"):
            return preprocess_data.main()
        sys.argv[1:] = map(stand_in, sys.argv[1:])
        return original(str(REPO / "tools" / Path(path).name), **named)

    runpy.run_path = run_path


def _tool(name: str) -> Callable[[], None]:
    """Runs a script of ours with the arguments of this process."""

    def main() -> None:
        words = [sys.executable, str(HERE / name), *map(stand_in, sys.argv[1:])]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    return main


# pytest imports a plugin before the conftest of the tests, which imports Megatron-LM
if not hasattr(typing, "override"):  # before Python 3.12
    typing.override = typing_extensions.override  # type: ignore[attr-defined]
_stub_cuda()
_stub_triton()
_stub_object_store()
_take_compiled_helpers()
_stub_downloads()
_put_our_writer()
_put_our_tools()
