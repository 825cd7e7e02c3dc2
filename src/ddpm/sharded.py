"""Training with the weights spread over the ranks, and its checkpoint: a folder with a file of each rank.

Each file is a checkpoint like any other, with the rank's rows of what is spread, so that it is read as safely: the
index of PyTorch's own format for this is a pickle of classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ddpm import strangers
from ddpm.checkpoint_io import remove, take_name
from ddpm.errors import Refused


class Sharded(ModelParallelStrategy):
    """FSDP2 over all ranks. What is spread is the module's business (`configure_model`)."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.model is not None
        return self.model.state_dict()

    def optimizer_state(self, optimizer: Optimizer | LightningOptimizer) -> dict[str, Any]:
        plain = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return plain.state_dict()

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """Every rank writes; the folder takes its name when all have, and not at all where one had no room."""
        path = Path(self.broadcast(filepath))
        part = path.with_name(f"{path.name}.part")
        spread = [name for name, value in checkpoint["state_dict"].items() if isinstance(value, DTensor)]
        told = {"rank": self.global_rank, "ranks": self.world_size, "names": spread}
        self.checkpoint_io.save_checkpoint(own(checkpoint) | {"sharded": told}, part / file_of(self.global_rank))
        if self._lack_room():
            remove(part)
        elif self.is_global_zero:
            take_name(part, path)
        self.barrier()

    def _lack_room(self) -> bool:
        """Has any rank found no room? Then all say so."""
        everyone: list[str | None] = [None] * self.world_size
        torch.distributed.all_gather_object(everyone, self.checkpoint_io.lacks_room)  # type: ignore[attr-defined]
        self.checkpoint_io.lacks_room = next(filter(None, everyone), None)  # type: ignore[attr-defined]
        return any(everyone)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Give each rank its rows of weights and optimiser, and return the rest."""
        path = Path(self.broadcast(checkpoint_path))
        if not is_sharded(path):
            raise Refused(f"{path} is not spread over ranks; go on with trainer=ddp, or set name=NAME for a new run.")
        content = part_of(path / file_of(self.global_rank))
        if content.pop("sharded")["ranks"] != self.world_size:
            raise Refused(f"{path} is spread over another number of ranks than {self.world_size}; go on with as many.")
        assert self.model is not None
        fill(self.model.state_dict(), content.pop("state_dict"))
        for optimizer, state in zip(self.optimizers, content.pop("optimizer_states"), strict=True):
            optimizer.load_state_dict(spread_again(state, optimizer))
        return content


def file_of(rank: int) -> str:
    """The name of a rank's file in the folder of a checkpoint."""
    return f"rank_{rank:05d}.ckpt"


def is_sharded(path: Path) -> bool:
    """Is this the folder of such a checkpoint?"""
    return (path / file_of(0)).is_file()


def own(value: Any) -> Any:
    """Containers with this rank's rows in place of what is spread, on the CPU."""
    if isinstance(value, DTensor):
        return value.to_local().detach().clone().cpu()  # a part of a larger storage would be written with all of it
    if isinstance(value, Mapping):
        return {key: own(below) for key, below in value.items()}
    return [own(below) for below in value] if isinstance(value, list) else value


@torch.no_grad()
def fill(mine: Mapping[str, Tensor], rows: Mapping[str, Tensor]) -> None:
    """Put a rank's rows into its tensors. Raises KeyError or RuntimeError where they do not fit."""
    if mine.keys() != rows.keys():
        raise KeyError(f"other weights than {sorted(mine.keys() ^ rows.keys())[0]}")
    for name, value in mine.items():
        (value.to_local() if isinstance(value, DTensor) else value).copy_(rows[name])


def spread_again(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's state of which a rank has its rows."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return state | {
        "state": {k: {key: like(v, parameters[k]) for key, v in s.items()} for k, s in state["state"].items()}
    }


def like(rows: Any, parameter: Tensor) -> Any:
    """Rows as a tensor that is spread as a parameter is, where they are its rows."""
    if not (isinstance(parameter, DTensor) and isinstance(rows, Tensor) and rows.dim()):
        return rows
    rows = rows.to(parameter.to_local().device)
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(rows, mesh, placements, shape=parameter.shape, stride=parameter.stride())


def part_of(file: Path) -> dict[str, Any]:
    """The content of a rank's file. Raises ValueError for any other file."""
    content = strangers.content(file)
    content = content if isinstance(content, dict) else {}
    if not _is_told(content.get("sharded"), content.get("state_dict")):
        raise ValueError(f"{file.name} is no part of a checkpoint")
    return dict(content)


def _is_told(told: Any, state: Any) -> bool:
    """Does it say of which rank of how many it is, and which of its own weights are spread, each once?"""
    if not isinstance(told, dict) or not isinstance(state, dict):
        return False
    rank, ranks, names = (told.get(key) for key in ("rank", "ranks", "names"))
    if type(rank) is not int or type(ranks) is not int or not isinstance(names, list):
        return False
    are_own = all(isinstance(name, str) and isinstance(state.get(name), Tensor) for name in names)
    return 0 <= rank < ranks and are_own and len(set(names)) == len(names)


def joined(folder: Path) -> dict[str, Any]:
    """The content of a checkpoint as one rank would have written it, but for the optimiser. Raises ValueError where
    parts are missing, of different steps or do not belong together."""
    count = len(list(folder.glob("rank_*.ckpt")))
    parts = [part_of(folder / file_of(rank)) for rank in range(count)]
    first, told = parts[0], parts[0]["sharded"]
    if told["ranks"] != count:
        raise ValueError(f"it has {count} of {told['ranks']} parts")
    if any(part.pop("sharded") != told | {"rank": rank} for rank, part in enumerate(parts)):
        raise ValueError("its parts do not belong together")
    if any(part["global_step"] != first["global_step"] for part in parts):
        raise ValueError("its parts are of different steps")
    rows = {name: torch.cat([part["state_dict"][name] for part in parts]) for name in told["names"]}
    return {key: value for key, value in first.items() if key != "optimizer_states"} | {
        "state_dict": first["state_dict"] | rows
    }
