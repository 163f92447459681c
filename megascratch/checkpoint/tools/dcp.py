"""Lets torch.distributed.checkpoint (DCP) save and load state dicts as megascratch checkpoints, without pickle.

    dcp.save({"w": tensor}, storage_writer=DcpWriter("folder", step=5))
    dcp.load({"w": tensor}, storage_reader=DcpReader("folder/step_00000005"))

For programs that already use that library (DTensor, FSDP2). Training itself does not: DCP plans cannot prove that each
element is read exactly once, and allow one box per rank and tensor, while a flat shard of ZeRO-1 or a fused weight has
several. Values that are not tensors are refused, because the library would pickle them.
"""

import dataclasses
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from megascratch.checkpoint.backend.backend import begin
from megascratch.checkpoint.format.file_format import arrange, split_box
from megascratch.checkpoint.format.io import raw_bytes
from megascratch.checkpoint.open_checkpoint import OpenCheckpoint
from megascratch.checkpoint.save import step_contents, write_file
from megascratch.checkpoint.steps import resolve, step_folder
from megascratch.config.errors import UserError
from megascratch.parallel.shard import Box
from megascratch.parallel.sharded_tensor import ShardedTensor
from megascratch.storage.path import Place, storage_path


class DcpWriter(StorageWriter):
    """Writes `{folder}/step_...`, committed when every rank has written.

    Args:
        state: any JSON, stored in the manifest.
    """

    def __init__(self, folder: str | Place, step: int, state: dict[str, Any] | None = None):
        self.folder = storage_path(folder)
        self.step = step
        self.state = state or {}

    def reset(self, checkpoint_id: Any = None) -> None:
        """Does nothing: the constructor has the path."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.is_coordinator = is_coordinator

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO:
                raise UserError(
                    f"{item.index.fqn} is not a tensor: pass it to DcpWriter(state=...) as JSON"
                )
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the coordinator: begins the step and gives each rank a number for its file."""
        nbytes = sum(map(_bytes_of, plans))
        self.draft = begin(step_folder(self.folder, self.step), self.folder, nbytes)
        return [
            dataclasses.replace(plan, storage_data=(self.draft, rank))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        draft, rank = plan.storage_data
        held = [_held(item, planner.resolve_data(item)) for item in plan.items]
        layout = arrange(slot for item in held for slot in split_box(item))
        table = write_file(
            draft, draft.file_name(rank), layout, lambda i: raw_bytes(layout.slots[i].tensor)
        )
        # The library expects a result for each item; the first one carries what this rank has written.
        results = [
            WriteResult(item.index, own.tensor.nbytes, table if number == 0 else None)
            for number, (item, own) in enumerate(zip(plan.items, held, strict=True))
        ]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """On the coordinator: writes the manifest and commits the step."""
        tables = [own[0].storage_data for own in results if own]
        self.draft.commit(step_contents(self.step, self.state, tables, self.draft.table_name))


class DcpReader(StorageReader):
    """Reads a step folder, or the newest valid one in a folder of them, and verifies every chunk that it reads."""

    def __init__(self, path: str | Place):
        self.path = path

    def reset(self, checkpoint_id: Any = None) -> None:
        """Does nothing: the constructor has the path."""

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Raises: DamagedError."""
        described: dict[str, Any] = {}
        stored = {}
        with OpenCheckpoint(resolve(self.path)) as contents:
            for name, whole in contents.manifest.tensors.items():
                chunks = []
                for chunk in contents.chunks(name):
                    start = torch.Size(chunk.box.start)
                    chunks.append(ChunkStorageMetadata(start, torch.Size(chunk.box.shape)))
                    stored[MetadataIndex(name, start)] = chunk
                properties = TensorProperties(dtype=whole.dtype)
                described[name] = TensorStorageMetadata(properties, torch.Size(whole.shape), chunks)
        return Metadata(described, storage_data=stored, storage_meta=StorageMeta())

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        self.chunks = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Raises: DamagedError."""
        with OpenCheckpoint(resolve(self.path)) as contents:
            for request in plan.items:
                chunk = self.chunks[request.storage_index]
                part = contents.chunk(request.storage_index.fqn, chunk)
                for dim, (start, length) in enumerate(
                    zip(request.storage_offsets, request.lengths, strict=True)
                ):
                    part = part.narrow(dim, start, length)
                target = planner.resolve_tensor(request)
                target.copy_(part)
                planner.commit_tensor(request, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done


def _bytes_of(plan: SavePlan) -> int:
    chunks = [item.tensor_data for item in plan.items if item.tensor_data is not None]
    return sum(data.chunk.sizes.numel() * data.properties.dtype.itemsize for data in chunks)


def _held(item: WriteItem, tensor: Any) -> ShardedTensor:
    assert item.tensor_data is not None
    start = tuple(item.tensor_data.chunk.offsets)
    sizes = item.tensor_data.chunk.sizes
    stop = tuple(first + size for first, size in zip(start, sizes, strict=True))
    whole_shape = tuple(item.tensor_data.size)
    return ShardedTensor(item.index.fqn, whole_shape, Box(start, stop), tensor.detach(), 0)
