"""How training spreads t over {1, ..., T}.

Numbers u in [0, 1) become times; the loss of an image is weighted so that its expectation is that of
uniform t whatever the distribution.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from ddpm.errors import Refused


class Timestep(nn.Module, ABC):
    """A distribution of t."""

    learns: ClassVar[bool] = False  # does it want to see the losses?

    def spread(self, position: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        """Positions in the global batch (b,), int64, to an index and a shift (b,) each: image j takes number
        `index[j]` of the step's uniform ones, plus `shift[j]`, mod 1. Here each takes its own."""
        return position, torch.zeros_like(position, dtype=torch.float64)

    @abstractmethod
    def times(self, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """u (b,) in [0, 1) to t (b,) in {1, ..., T} and weights (b,), 1/(T p_t)."""

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Learn from the unweighted losses (b,) of the whole global batch at times t (b,)."""


class Uniform(Timestep):
    """t ~ Uniform({1, ..., T}), Ho et al. (2020), Algorithm 1."""

    def times(self, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        return (u * num_steps).floor().long() + 1, torch.ones_like(u)


class Stratified(Uniform):
    """Uniform, but each global batch covers the unit interval evenly: position j of N takes
    (u + j/N) mod 1 with one u a step (Kingma et al. 2021, Appendix I.1)."""

    def spread(self, position: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(position), position.double() / batch_size


class LossAware(Timestep):
    """p_t proportional to sqrt(E[L_t^2]) over the last `history` losses of each t, mixed with a little
    of the uniform; uniform until every history is full. Nichol & Dhariwal (2021), Sec. 3.3 and code.

    Its history is part of the state of the module, and with it of a checkpoint.
    """

    learns = True
    losses: Tensor
    counts: Tensor

    def __init__(self, *, history: int, uniform: float, num_steps: int) -> None:
        super().__init__()
        if history < 1 or not 0 < uniform <= 1:
            raise Refused("timestep.history must be at least 1 and timestep.uniform lie in (0, 1].")
        self.history, self.uniform = history, uniform
        self.register_buffer("losses", torch.zeros(num_steps, history))
        self.register_buffer("counts", torch.zeros(num_steps, dtype=torch.long))

    def probabilities(self) -> Tensor:
        """p_t for t = 1, ..., T: float64."""
        num_steps = len(self.counts)
        root = self.losses.double().square().mean(1).sqrt()
        share = root / root.sum().clamp(min=torch.finfo(torch.float64).tiny)
        learned = (1 - self.uniform) * share + self.uniform / num_steps
        full = (self.counts >= self.history).all()
        return torch.where(full, learned / learned.sum(), torch.full_like(learned, 1 / num_steps))

    def times(self, u: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        p = self.probabilities()
        index = torch.searchsorted(p.cumsum(0), u.to(p), right=True).clamp(max=num_steps - 1)
        return index + 1, 1 / (num_steps * p[index])

    def update(self, t: Tensor, losses: Tensor) -> None:
        """Each loss takes the place of the oldest of its t, in the order of the global batch.

        Images of one t follow one another in the ring; of more than fit, the last ones stay.
        """
        index = t - 1
        same = index[:, None] == index[None, :]
        place = (self.counts[index] + same.tril(-1).sum(1)) % self.history
        stays = same.triu(1).sum(1) < self.history
        self.losses.index_put_((index[stays], place[stays]), losses[stays].to(self.losses))
        self.counts += torch.bincount(index, minlength=len(self.counts))
