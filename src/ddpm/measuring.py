"""What `evaluate.py` does: the scores of a checkpoint, one row a protocol in `results.jsonl` beside it."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from ddpm.build import Config, build_metrics
from ddpm.callbacks.progress import Progress
from ddpm.errors import Refused
from ddpm.evaluation import Evaluation, ScoringModule
from ddpm.opening import Opened, data_of, opened, quiet_trainer
from ddpm.report import console, score_table

PACKAGES = ("ddpm", "torch", "torchvision", "lightning", "torchmetrics", "torch-fidelity", "numpy")


def measure(config: Config) -> float | None:
    """Measure as the config of evaluate.py says; print a table, keep a row, return one score."""
    model = opened(config, {"optimized_metric": str | None})
    metrics = build_metrics(config)
    asked = config["optimized_metric"] or next(iter(metrics), None)
    if asked is None or asked not in metrics:
        raise Refused(f"optimized_metric={asked} is not measured; choose one of metric=[...].")
    data = data_of(model.loaded, config["data"])
    evaluation = Evaluation(metrics, data, config["num_images"], config["batch_size"])
    scores, is_first = scored(config, model, evaluation)
    if is_first:
        path = keep(model.loaded.path.parent, row(config, model, evaluation, scores))
        console.print(score_table(scores))
        console.print(f"results: {path}", soft_wrap=True)
    return scores[asked]


def scored(config: Config, model: Opened, evaluation: Evaluation) -> tuple[dict[str, float], bool]:
    """The scores, and whether this is rank 0."""
    trainer = quiet_trainer(config, [Progress()])
    evaluation.prepare(trainer.strategy.root_device)
    module = ScoringModule(evaluation, model.module(config["seed"]))
    loaders = module.loaders(trainer.global_rank, trainer.world_size)
    trainer.predict(module, loaders, return_predictions=False)
    return evaluation.results(), trainer.is_global_zero


def row(config: Config, model: Opened, evaluation: Evaluation, scores: dict[str, float]) -> dict[str, Any]:
    """All that makes the scores comparable, the scores, and what they were computed with."""
    sampler = dict(config["sampler"])
    protocol = {
        "checkpoint": model.loaded.path.name,
        "step": model.loaded.step,
        "weights": config["weights"],
        "sampler": sampler,
        "sampler_times": len(model.sampler.times(model.loaded.diffusion.num_steps)) - 1,
        "sigma": None if model.sampler.has_own_sigma else dict(model.sigma),
        "images": config["num_images"],
        "seed": config["seed"],
        "data": model.loaded.facts.as_dict() | {"class_names": len(model.loaded.facts.class_names)},
        "metrics": evaluation.protocol(),
    }
    versions = {package: version(package) for package in PACKAGES}
    return {"protocol": protocol, "scores": scores, "versions": versions, "commit": commit()}


def keep(folder: Path, new: dict[str, Any]) -> Path:
    """Put the row into results.jsonl, in place of one of the same protocol; jobs that meet wait."""
    path = folder / "results.jsonl"
    with FileLock(folder / ".results.lock"):
        lines = path.read_text().splitlines() if path.is_file() else []
        others = [line for line in lines if json.loads(line)["protocol"] != json.loads(json.dumps(new["protocol"]))]
        part = path.with_name(path.name + ".part")
        part.write_text("\n".join([*others, json.dumps(new)]) + "\n")
        part.replace(path)
    return path


def commit() -> str | None:
    """The git commit of this source tree, if it is one."""
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None
