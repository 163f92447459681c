"""Copies the tensors of a checkpoint from the device to host memory, so that a save can run in the background.

Training waits only for this copy. The bytes are stored in the order of the file. The memory is reused by every save,
and pinned if the tensors are on a GPU.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from megascratch.checkpoint.format.file_format import FileLayout
from megascratch.config.errors import UserError


class _CopyRange(NamedTuple):
    """Tensors that are neighbours in the file and in memory: one copy."""

    source: Tensor
    target: Tensor


class Staging:
    """The host memory for one file. Raises: UserError if there is not enough."""

    def __init__(self, layout: FileLayout):
        sources = [slot.tensor.detach() for slot in layout.slots]
        self.device = next((source.device for source in sources if source.is_cuda), None)
        self.nbytes = layout.size - len(layout.header)
        try:
            self.buffer = torch.empty(
                self.nbytes, dtype=torch.uint8, pin_memory=self.device is not None
            )
        except RuntimeError as error:
            raise UserError(
                f"async-save needs {self.nbytes:,} bytes of host memory on each rank, but they cannot be allocated: "
                "use --no-async-save"
            ) from error
        self.buffer.zero_()  # the kernel maps the pages now, not during the first copy
        self._bytes = self.buffer.numpy().data
        self._places: list[tuple[int, int]] = []  # of each chunk in the buffer
        for offset, source in zip(layout.offsets, sources, strict=True):
            start = offset - len(layout.header)
            self._places.append((start, start + source.nbytes))
        self._runs = list(self._merged(sources))

    def copy(self) -> None:
        """Copies the current content; the tensors may change again when it returns."""
        for run in self._runs:
            run.target.copy_(run.source, non_blocking=True)
        if self.device is not None:
            torch.cuda.current_stream(self.device).synchronize()

    def raw(self, index: int) -> memoryview:
        """The bytes of a chunk by its number in the layout."""
        start, stop = self._places[index]
        return self._bytes[start:stop]

    def _merged(self, sources: list[Tensor]) -> Iterator[_CopyRange]:
        index = 0
        while index < len(sources):
            first = sources[index]
            end = index + 1
            if first.is_contiguous():
                while end < len(sources) and _follows(sources[end - 1], sources[end]):
                    end += 1
            start, _ = self._places[index]
            _, stop = self._places[end - 1]
            target = self.buffer[start:stop].view(first.dtype)
            if end == index + 1:
                yield _CopyRange(first, target.view(first.shape))
            else:
                yield _CopyRange(first.as_strided((target.numel(),), (1,)), target)
            index = end


def _follows(one: Tensor, other: Tensor) -> bool:
    return (
        other.is_contiguous()
        and one.dtype == other.dtype
        and one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        and one.storage_offset() + one.numel() == other.storage_offset()
    )
