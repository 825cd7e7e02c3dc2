"""What `evaluate.py` does: the scores of a checkpoint, one row a protocol in `results.jsonl` beside it."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock
from lightning.pytorch import Callback

from ddpm import nearest, rate_distortion, sweep, texts
from ddpm.build import Config, build_metrics
from ddpm.callbacks.progress import Progress
from ddpm.checkpoint_io import room_in
from ddpm.errors import Refused
from ddpm.evaluation import Evaluation, ScoringModule
from ddpm.given import Given, Replay, given
from ddpm.instantiate import check_values
from ddpm.kept import Keeping, Kept
from ddpm.meeting import meet
from ddpm.metric import DataMetric, Nearest, SampleMetric
from ddpm.metric.cache import fingerprint
from ddpm.opening import Opened, data_of, opened, quiet_trainer
from ddpm.precision import precision
from ddpm.report import console, score_table
from ddpm.whole import whole

_CODE = 1  # to be raised when a change to a bound, the noise or the choice of images would give other terms or samples
PACKAGES = ("ddpm", "torch", "torchvision", "lightning", "torchmetrics", "torch-fidelity", "numpy")

MORE_ROOM = "and the same command goes on, or set results=FILE to another disk"
TYPES = {"optimized_metric": str | None, "results": str | None, "images": str | None}


def measure(config: Config, overrides: Sequence[str]) -> float | None:
    """Measure as the config of evaluate.py says; print a table, keep a row with what was asked, return one score."""
    metrics = build_metrics(config)
    check_values(config, TYPES)
    draws = config["images"] is None and any(isinstance(metric, SampleMetric) for metric in metrics.values())
    model = opened(config, draws)
    asked = config["optimized_metric"] or next(iter(metrics), None)
    if asked is None or asked not in metrics:
        raise Refused(f"optimized_metric={asked} is not measured; choose one of metric=[...].")
    data, results = data_of(model.loaded, config["data"]), results_of(config, model)
    evaluation = Evaluation(metrics, data, config["num_images"], config["batch_size"])
    images = given_images(config, model)
    kept = Kept(model.module(config["seed"]), results.parent / "drawn" / drawing_of(config, model))
    keeping = Keeping(kept)
    module = ScoringModule(evaluation, kept if images is None else Replay(kept, images))
    own = [keeping] if draws else []
    is_first = score(config, model, module, own, results.parent / "terms")
    scores = module.scores
    if is_first:
        new = row(config, model, evaluation, scores, images)
        with room_in(results.parent, MORE_ROOM):
            keep(results, {"overrides": list(overrides)} | new)
            sweep.note(results, scores)
            for name, path in written(evaluation, new["protocol"], results.parent / "nearest"):
                console.print(f"{name}: {path}", soft_wrap=True, markup=False)
            keeping.forget()
        console.print(score_table(scores))
        console.print(f"results: {results}", soft_wrap=True, markup=False)
    return scores[asked]


def given_images(config: Config, model: Opened) -> Given | None:
    """The samples, if the config names some."""
    if config["images"] is None:
        return None
    return given(config["images"], model.loaded.facts.shape, config["num_images"], model.weights_key)


def score(config: Config, model: Opened, module: ScoringModule, own: Sequence[Callback], terms: Path) -> bool:
    """Measure on all ranks; is this the first? The terms of bounds are kept in a folder."""
    trainer = quiet_trainer(config, [Progress(), *own])
    module.evaluation.prepare(trainer.strategy.root_device)
    for metric in module.evaluation.of_data:
        metric.keep_at(terms / f"{metric.name}-{identity_of(metric, model, trainer.precision)}")
    loaders = module.loaders(trainer.global_rank, trainer.world_size)
    meet()
    with room_in(terms.parent, MORE_ROOM):
        trainer.predict(module, loaders, return_predictions=False)
    return trainer.is_global_zero


def written(evaluation: Evaluation, protocol: Mapping[str, Any], folder: Path) -> Iterator[tuple[str, Path]]:
    """Leaves what there is besides the scores: the name of each metric that has more, and where it is."""
    for metric in evaluation.of_data:
        for path in rate_distortion.write(metric.details(), metric.place):
            yield metric.name, path
    for of_samples in evaluation.of_samples.metrics:
        if isinstance(of_samples, Nearest):
            told = dict(protocol) | {"metrics": of_samples.protocol()}
            for path in nearest.write(of_samples, folder / f"{of_samples.name}-{fingerprint({}, told)}"):
                yield of_samples.name, path


def row(
    config: Config, model: Opened, evaluation: Evaluation, scores: dict[str, float], images: Given | None = None
) -> dict[str, Any]:
    """All that makes the scores comparable, the scores, and what they were computed with."""
    sampler = dict(config["sampler"])
    protocol = {
        "checkpoint": model.loaded.path.name,
        "weights_key": model.weights_key,
        "precision": precision(config["trainer"]["precision"], config["trainer"]["accelerator"]),
        "step": model.loaded.step,
        "weights": model.loaded.weights,
        "sampler": sampler,
        "sampler_times": len(model.sampler.times(model.loaded.diffusion.num_steps)) - 1,
        "sigma": dict(model.sigma) if evaluation.of_data or not model.sampler.has_own_sigma else None,
        "decoder": dict(model.decoder),
        "images": config["num_images"],
        "seed": config["seed"],
        "data": model.loaded.facts.as_dict() | {"class_names": len(model.loaded.facts.class_names)},
        "metrics": evaluation.protocol(),
    }
    if images is not None:  # what they were drawn by is theirs, if anybody's; a bound beside them has its own sigma
        theirs = {key: images.origin.get(key) for key in ("sampler", "seed")}
        protocol |= theirs | {"sampler_times": None, "drawing": images.protocol()}
        protocol |= {} if evaluation.of_data else {key: images.origin.get(key) for key in ("sigma", "precision")}
    versions = {package: version(package) for package in PACKAGES}
    return {"protocol": protocol, "scores": scores, "versions": versions, "commit": commit()}


def results_of(config: Config, model: Opened) -> Path:
    """The file for the rows. Raises Refused, before anything is measured, if it cannot be written."""
    path = Path(config["results"] or model.loaded.path.with_name("results.jsonl"))
    try:
        with lock(path), path.open("a"):
            rows_of(path)
    except OSError as error:
        raise Refused(f"{path} cannot be written ({error.strerror}); set results=FILE.") from error
    return path


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows that a file holds. Raises Refused for a file of anything else."""
    try:
        rows: list[dict[str, Any]] = texts.told_by_line(path)
    except ValueError as fault:
        raise Refused(f"{path} holds other things than results of evaluate.py; set results=FILE.") from fault
    if not all(isinstance(row, dict) and isinstance(row.get("protocol"), dict) for row in rows):
        raise Refused(f"{path} holds other things than results of evaluate.py; set results=FILE.")
    return rows


def identity_of(metric: DataMetric, model: Opened, precision: str) -> str:
    """Tells one measurement from another: a hash of the weights and of all else that a bound depends on."""
    parts = [_CODE, model.weights_key, precision, dict(model.sigma), dict(model.decoder), metric.protocol()]
    return fingerprint({}, *parts)


def drawing_of(config: Config, model: Opened) -> str:
    """Tells one drawing from another: a hash of all that its images depend on but for their indices."""
    how = precision(config["trainer"]["precision"], config["trainer"]["accelerator"])
    parts = [_CODE, model.weights_key, how, dict(config["sampler"]), dict(model.sigma), config["seed"]]
    return fingerprint({}, *parts, version("ddpm"))


def lock(path: Path) -> FileLock:
    """Held while the rows are read and written."""
    return FileLock(path.with_name(f".{path.stem}.lock"))


def keep(path: Path, new: dict[str, Any]) -> None:
    """Put the row into the file, in place of one of the same protocol; jobs that meet wait."""
    with lock(path):
        protocol = json.loads(json.dumps(new["protocol"]))
        others = [row for row in rows_of(path) if row["protocol"] != protocol]
        with whole(path) as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in (*others, new)))


def commit() -> str | None:
    """The git commit of this source tree, if it is one."""
    asked = ["git", "rev-parse", "HEAD"]
    try:
        told = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except OSError:  # no git here: the scores, hours of work perhaps, are kept all the same
        return None
    return told.stdout.strip() or None
