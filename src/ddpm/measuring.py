"""What `evaluate.py` does: the scores of a checkpoint, one row a protocol in `results.jsonl` beside it."""

import json
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock

from ddpm import rate_distortion, sweep
from ddpm.build import Config, build_metrics
from ddpm.callbacks.progress import Progress
from ddpm.errors import Refused
from ddpm.evaluation import Evaluation, ScoringModule
from ddpm.metric import DataMetric, SampleMetric
from ddpm.metric.cache import fingerprint
from ddpm.opening import Opened, data_of, opened, quiet_trainer, weights_key
from ddpm.precision import precision
from ddpm.report import console, score_table

PACKAGES = ("ddpm", "torch", "torchvision", "lightning", "torchmetrics", "torch-fidelity", "numpy")


def measure(config: Config, overrides: Sequence[str]) -> float | None:
    """Measure as the config of evaluate.py says; print a table, keep a row with what was asked, return one score."""
    metrics = build_metrics(config)
    draws = any(isinstance(metric, SampleMetric) for metric in metrics.values())
    model = opened(config, {"optimized_metric": str | None, "results": str | None}, draws)
    asked = config["optimized_metric"] or next(iter(metrics), None)
    if asked is None or asked not in metrics:
        raise Refused(f"optimized_metric={asked} is not measured; choose one of metric=[...].")
    data, results = data_of(model.loaded, config["data"]), results_of(config, model)
    evaluation = Evaluation(metrics, data, config["num_images"], config["batch_size"])
    scores, is_first = scored(config, model, evaluation, results.parent / "terms")
    if is_first:
        keep(results, {"overrides": list(overrides)} | row(config, model, evaluation, scores))
        sweep.note(results, scores)
        for metric in evaluation.of_data:
            for path in rate_distortion.write(metric.details(), metric.place):
                console.print(f"{metric.name}: {path}", soft_wrap=True)
        console.print(score_table(scores))
        console.print(f"results: {results}", soft_wrap=True)
    return scores[asked]


def scored(config: Config, model: Opened, evaluation: Evaluation, terms: Path) -> tuple[dict[str, float], bool]:
    """The scores, and whether this is rank 0. The terms of bounds are kept in a folder."""
    trainer = quiet_trainer(config, [Progress()])
    evaluation.prepare(trainer.strategy.root_device)
    for metric in evaluation.of_data:
        metric.keep_at(terms / f"{metric.name}-{identity_of(metric, model, trainer.precision)}")
    module = ScoringModule(evaluation, model.module(config["seed"]))
    loaders = module.loaders(trainer.global_rank, trainer.world_size)
    trainer.predict(module, loaders, return_predictions=False)
    return evaluation.results(), trainer.is_global_zero


def row(config: Config, model: Opened, evaluation: Evaluation, scores: dict[str, float]) -> dict[str, Any]:
    """All that makes the scores comparable, the scores, and what they were computed with."""
    sampler = dict(config["sampler"])
    protocol = {
        "checkpoint": model.loaded.path.name,
        "weights_key": weights_key(model),
        "precision": precision(config["trainer"]["precision"], config["trainer"]["accelerator"]),
        "step": model.loaded.step,
        "weights": config["weights"],
        "sampler": sampler,
        "sampler_times": len(model.sampler.times(model.loaded.diffusion.num_steps)) - 1,
        "sigma": dict(model.sigma) if evaluation.of_data or not model.sampler.has_own_sigma else None,
        "decoder": dict(model.decoder),
        "images": config["num_images"],
        "seed": config["seed"],
        "data": model.loaded.facts.as_dict() | {"class_names": len(model.loaded.facts.class_names)},
        "metrics": evaluation.protocol(),
    }
    versions = {package: version(package) for package in PACKAGES}
    return {"protocol": protocol, "scores": scores, "versions": versions, "commit": commit()}


def results_of(config: Config, model: Opened) -> Path:
    """The file for the rows. Raises Refused, before anything is measured, if it can not be written."""
    path = Path(config["results"] or model.loaded.path.with_name("results.jsonl"))
    try:
        with lock(path), path.open("a"):
            rows_of(path)
    except OSError as error:
        raise Refused(f"{path} can not be written ({error.strerror}); set results=FILE.") from error
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows that a file holds. Raises Refused for a file of anything else."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        return [row for row in rows if row["protocol"]]
    except (ValueError, TypeError, KeyError) as error:
        raise Refused(f"{path} holds other things than results of evaluate.py; set results=FILE.") from error


def identity_of(metric: DataMetric, model: Opened, precision: str) -> str:
    """Tells one measurement from another: a hash of the weights and of all else that a bound depends on."""
    parts = [weights_key(model), precision, dict(model.sigma), dict(model.decoder), metric.protocol()]
    return fingerprint({}, *parts)


def lock(path: Path) -> FileLock:
    """Held while the rows are read and written."""
    return FileLock(path.with_name(f".{path.stem}.lock"))


def keep(path: Path, new: dict[str, Any]) -> None:
    """Put the row into the file, in place of one of the same protocol; jobs that meet wait."""
    with lock(path):
        protocol = json.loads(json.dumps(new["protocol"]))
        others = [row for row in rows_of(path) if row["protocol"] != protocol]
        part = path.with_name(path.name + ".part")
        part.write_text("".join(json.dumps(row) + "\n" for row in (*others, new)))
        part.replace(path)


def commit() -> str | None:
    """The git commit of this source tree, if it is one."""
    told = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
    )
    return told.stdout.strip() or None
