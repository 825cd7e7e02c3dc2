"""The scores of the model every n steps, and the best checkpoint by one of them."""

import math
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from ddpm.callbacks.checkpoint import BEST, write
from ddpm.callbacks.every import EveryNSteps, measuring
from ddpm.callbacks.stop import end_if_asked
from ddpm.data.image_data import ImageData
from ddpm.errors import Refused
from ddpm.evaluation import Evaluation
from ddpm.metric import DataMetric, SampleMetric
from ddpm.metric.cache import fingerprint
from ddpm.sampler import Sampler
from ddpm.sampling import SamplingModule


class Evaluate(EveryNSteps):
    """Runs the metrics on the averaged weights, on all ranks, and logs them as score/NAME/SAMPLER_STEPS.

    num_images, batch_size  how many samples the sample metrics look at, and in batches of what size
    evaluation_sampler      what draws them; its name is part of the scores'
    monitor                 the score whose best value so far is kept as `best.ckpt`; None keeps none. One that is
                            resumed with another of these, another protocol of the metric or other settings of the
                            sampler begins anew, since the two cannot be compared
    """

    def __init__(
        self,
        *,
        every_n_steps: int,
        num_images: int,
        batch_size: int,
        monitor: str | None,
        metrics: dict[str, SampleMetric | DataMetric],
        data: ImageData,
        evaluation_sampler: Sampler,
        seed: int,
        folder: Path,
    ) -> None:
        super().__init__(every_n_steps=every_n_steps)
        self.evaluation = Evaluation(metrics, data, num_images, batch_size)
        self.sampler, self.shape, self.seed = evaluation_sampler, data.facts.shape, seed
        if monitor is not None and monitor not in metrics:
            raise Refused(
                f"optimized_metric={monitor} is not measured; choose one of {', '.join(metrics) or 'none'}, "
                "add it to metric=[...], or set optimized_metric=null."
            )
        self.monitor, self.best_path = monitor, folder / "checkpoints" / BEST
        self.best: float | None = None
        self.best_of: str | None = None  # what it is the best value of
        self.scores: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.evaluation.prepare(trainer.strategy.root_device)

    def act(self, trainer: Trainer, module: LightningModule) -> None:
        with measuring(trainer, module):
            model = SamplingModule(
                module.diffusion,  # type: ignore[arg-type]
                self.sampler,
                shape=self.shape,
                seed=self.seed,
                label=None,
                guidance=1.0,
            )
            model, rank, ranks = model.to(module.device), trainer.global_rank, trainer.world_size
            self.scores = self.evaluation.run(model, rank, ranks, look=partial(end_if_asked, trainer))
        drawn_by = self.sampler.told(module.diffusion.num_steps)  # type: ignore[union-attr, arg-type]
        for name, value in self.scores.items():
            for logger in trainer.loggers:
                logger.log_metrics({f"score/{name}/{drawn_by}": value}, step=trainer.global_step)
        if self.monitor is not None:
            self._keep_best(trainer, self.monitor, self.told(self.monitor, drawn_by))

    def told(self, monitor: str, drawn_by: str) -> str:
        """What a score is a score of, in words and with a fingerprint of all that makes it comparable."""
        protocol = self.evaluation.metrics[monitor].protocol()
        settings = type(self.sampler), sorted(vars(self.sampler).items())
        key = fingerprint({}, protocol, *settings)
        return f"{monitor}/{drawn_by} of {self.evaluation.num_images} images, {key}"

    def _keep_best(self, trainer: Trainer, monitor: str, told: str) -> None:
        if self.best_of != told:
            self.best, self.best_of = None, told
        value, sign = self.scores[monitor], self._sign(monitor)
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best):
            self.best = value
            write(trainer, self.best_path)

    def _sign(self, name: str) -> int:
        return 1 if self.evaluation.metrics[name].larger_is_better else -1

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "best_of": self.best_of, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.scores = state_dict["best"], state_dict["scores"]
        self.best_of = state_dict.get("best_of")  # an older file does not say, or not all of it
