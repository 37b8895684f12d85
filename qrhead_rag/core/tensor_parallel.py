"""Heads of a model that is cut over several processes (tensor parallelism): each holds some of every layer's.

transformers cuts a model that is loaded with `tp_plan` (or `distributed_config`) in a process group. Every process then
runs the same passes. What it reads of its own heads is put together here, so that all of them know all.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import torch.distributed
from torch import Tensor
from transformers import PreTrainedModel
from transformers.distributed import DistributedConfig


def tensor_parallel(tp_plan: Any) -> dict[str, Any]:
    """What transformers' `from_pretrained` takes to cut a model over the processes of this group.

    Raises:
        ValueError: there is one process only.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        raise ValueError(
            f"tp_plan={tp_plan!r} cuts the model over several processes, this is the only one; start them with "
            "torchrun, or spread the model over the devices of one with device_map"
        )
    names = {field.name for field in fields(DistributedConfig)}
    # Newer versions take the plan inside of a configuration.
    return {"distributed_config": DistributedConfig(tp_plan=tp_plan)} if "tp_plan" in names else {"tp_plan": tp_plan}


@dataclass(frozen=True)
class HeadParts:
    """Which heads this process holds.

    Attributes:
        rank: of this process among those that share the model.
        size: how many share it; 1 for a model that is whole.
        group: the process group.
    """

    rank: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Self:
        """How a model is cut."""
        mesh = getattr(model, "_device_mesh", None)
        if mesh is None:
            return cls()
        mesh = mesh["tp"] if "tp" in (mesh.mesh_dim_names or ()) else mesh
        return cls(mesh.get_local_rank(), mesh.size(), mesh.get_group())

    def held(self, heads: Sequence[int], count: int, total: int) -> tuple[list[int], list[int]]:
        """Of some heads, the places of those that this process holds, and their numbers within it.

        Args:
            heads: numbers in the whole layer.
            count: heads of the layer that this process holds.
            total: heads of the whole layer; as many as `count` where the layer is not cut.

        >>> HeadParts(rank=1, size=2).held([5, 0, 6], count=4, total=8)
        ([0, 2], [1, 2])
        """
        first = 0 if self._whole(count, total) else self.rank * count
        places = [place for place, head in enumerate(heads) if first <= head < first + count]
        return places, [heads[place] - first for place in places]

    def gathered(self, part: Tensor, heads: Sequence[int], count: int, total: int, dim: int) -> Tensor:
        """What every process found for the heads it holds, put together for all; the arguments are those of `held`.

        Args:
            part: what this process found, in the order of `held`.
            heads: numbers in the whole layer, of those that are wanted.
            count: heads of the layer that this process holds.
            total: heads of the whole layer.
            dim: the dimension of heads.
        """
        if self._whole(count, total):
            return part
        shape = list(part.shape)
        shape[dim] = len(heads)
        places = torch.tensor(self.held(heads, count, total)[0], dtype=torch.long, device=part.device)
        whole = part.new_zeros(shape).index_copy_(dim, places, part)
        torch.distributed.all_reduce(whole, group=self.group)
        return whole

    def _whole(self, count: int, total: int) -> bool:
        return self.size == 1 or count == total
