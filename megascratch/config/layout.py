"""`Layout`: the sizes of all parallel axes in one record, which the settings, the process groups and the weights share.
Pure arithmetic, in the lowest room because the laws of the settings use it, too.

The same ranks are seen in several views. In each the last axis changes fastest:

    dense      pp  dp  cp  tp               weights of which each data rank has a copy
    expert     pp  edp  ep  etp             experts: `ep` deals them out to the ranks of a stage
    replicas   pp  replica  shard  cp  tp   the dense view, with dp in two parts (hybrid sharding)
    context    pp  dp  cp_ring  cp_heads  tp   the dense view, with cp in two parts (cp_comm_type a2a+p2p)

A new axis is a field here, its place in a view, and a law in `config/laws/layout.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from megascratch.config.settings import ParallelConfig

View = Literal["dense", "expert"]  # the views in which a weight can be cut

_NAMED_IF_USED = ("cp", "ep", "etp", "replica")


@dataclass(frozen=True)
class Layout:
    """The sizes of the axes. (The expert view: Liu et al. 2025, arXiv 2504.14960, MoE parallel folding.)"""

    tp: int = 1  # ranks that share each layer
    pp: int = 1  # pipeline stages
    dp: int = 1  # copies of the model
    cp: int = 1  # ranks that share each sequence
    ep: int = 1  # ranks that share the experts of a layer
    etp: int | None = (
        None  # ranks that share each expert; default: as many as share the other layers
    )
    dp_replicas: int = 1  # groups of data ranks, in each of which the state is complete
    cp_heads: int = (
        1  # neighbours of cp that exchange heads for tokens, and so are one place of a ring
    )

    @classmethod
    def of(cls, parallel: ParallelConfig) -> "Layout":
        """The layout that the settings ask for; one copy of the model if they give no number."""
        return cls.of_values(vars(parallel))

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> "Layout":
        """The same for settings by name."""
        hierarchy = values["hierarchical_context_parallel_sizes"]
        hybrid = values["cp_comm_type"] == "a2a+p2p" and hierarchy
        return cls(
            tp=values["tensor_model_parallel_size"],
            pp=values["pipeline_model_parallel_size"],
            dp=values["data_parallel_size"] or 1,
            cp=values["context_parallel_size"],
            cp_heads=hierarchy[0] if hybrid else 1,
        )

    @property
    def ranks_of_copy(self) -> int:
        """The ranks that together hold one copy of the model."""
        return self.tp * self.pp * self.cp

    @property
    def world(self) -> int:
        return self.ranks_of_copy * self.dp

    @property
    def name(self) -> str:
        """The sizes in words, such as `pp 2 x dp 4 x tp 2`; the axes that few layouts have only if they are used."""
        sizes = self.sizes("dense")
        expert = self.sizes("expert")
        if expert["ep"] > 1 or expert["etp"] != self.tp:
            sizes |= {"ep": expert["ep"], "etp": expert["etp"]}
        sizes["replica"] = self.dp_replicas
        words = []
        for axis, size in sizes.items():
            if size > 1 or axis not in _NAMED_IF_USED:
                words.append(f"{axis} {size}")
        return " x ".join(words)

    def sizes(self, view: str) -> dict[str, int]:
        """The sizes of the axes of a view, outermost first.

        Raises: ValueError if the ranks of a stage cannot be seen in this view.
        """
        if view == "expert":
            etp = self.etp or self.tp
            ranks = self.dp * self.cp * self.tp
            if ranks % (self.ep * etp):
                raise ValueError(
                    f"expert-model-parallel-size x expert-tensor-parallel-size ({self.ep} x {etp}) must divide the "
                    f"{ranks} ranks of a pipeline stage"
                )
            edp = ranks // (self.ep * etp)
            return {"pp": self.pp, "edp": edp, "ep": self.ep, "etp": etp}
        if view == "replicas":
            if self.dp % self.dp_replicas:
                raise ValueError(
                    f"data-parallel-size ({self.dp}) must be divisible by the number of replicas ({self.dp_replicas})"
                )
            shard = self.dp // self.dp_replicas
            return {
                "pp": self.pp,
                "replica": self.dp_replicas,
                "shard": shard,
                "cp": self.cp,
                "tp": self.tp,
            }
        if view == "context":
            if self.cp % self.cp_heads:
                raise ValueError(
                    f"context-parallel-size ({self.cp}) must be divisible by the ranks that exchange heads "
                    f"({self.cp_heads})"
                )
            ring = self.cp // self.cp_heads
            heads = self.cp_heads
            return {
                "pp": self.pp,
                "dp": self.dp,
                "cp_ring": ring,
                "cp_heads": heads,
                "tp": self.tp,
            }
        return {"pp": self.pp, "dp": self.dp, "cp": self.cp, "tp": self.tp}
