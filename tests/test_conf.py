"""Every YAML: its keys are its target's parameters, every choice composes, and impossible pairs are refused."""

import inspect
from itertools import product

import pytest
import torch
from compose import composed
from yamls import CONF, names, node

from ddpm.build import build_callbacks, build_data, build_module, build_sampler
from ddpm.data.facts import Facts
from ddpm.errors import Refused
from ddpm.instantiate import target_of
from ddpm.training import settings

WIRED = {  # what build.py hands over; nothing of it stands in a YAML
    "model": {"shape", "num_classes", "learned"},
    "timestep": {"num_steps"},
    "lr_schedule": {"max_steps"},
    "data": {"seed"},
    "sigma": {"eps_power"},
    "callbacks": {
        "folder",
        "data",
        "shape",
        "metrics",
        "monitor",
        "sampler",
        "evaluation_sampler",
        "seed",
        "batch_size",
    },
    "logger": {"folder", "save_dir"},
    "compile": {"network"},
}
OURS = [
    "model",
    "schedule",
    "sigma",
    "prediction",
    "decoder",
    "objective",
    "timestep",
    "sampler",
    "mode",
    "data",
    "lr_schedule",
    "metric",
    "compile",
]
DIGITS = Facts("digits", (1, 8, 8), 17, tuple("0123456789"), "")


@pytest.mark.parametrize(("group", "name"), [(g, n) for g in [*OURS, "callbacks", "logger"] for n in names(g)])
def test_the_keys_are_the_parameters(group, name):
    content = node(group, name)
    target = target_of(content, group)
    if not target.__module__.startswith("ddpm"):
        assert set(content) - {"_target_"} <= set(inspect.signature(target).parameters)
        return
    kinds = inspect.signature(target).parameters
    parameters = {name for name, p in kinds.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    keys = set(content) - {"_target_"}
    assert keys <= parameters
    assert parameters - keys <= WIRED.get(group, set())


@pytest.mark.parametrize("name", names("trainer"))
def test_trainers_have_only_keys_that_lightning_knows(name):
    from lightning.pytorch import Trainer

    assert set(node("trainer", name)) - {"_target_", "defaults"} <= set(inspect.signature(Trainer).parameters)


@pytest.mark.parametrize("path", sorted(CONF.glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_choice_says_what_it_is(path):
    first, second = path.read_text().splitlines()[:2]
    assert (second if first.startswith("# @package") else first).startswith("# ")


GROUPS = sorted(path.name for path in CONF.iterdir() if path.is_dir())
OF_TRAINING = [group for group in GROUPS if group not in ("mode", "experiment", "recipe")]


@pytest.mark.parametrize("k", range(max(len(names(group)) for group in OF_TRAINING)))
def test_every_choice_composes(k):
    """One of each group at a time."""
    picked = {group: names(group)[k % len(names(group))] for group in OF_TRAINING}
    lists = ("callbacks", "metric", "logger")
    config = composed(*(f"{group}=[{name}]" if group in lists else f"{group}={name}" for group, name in picked.items()))
    assert all(config[group] for group in OF_TRAINING)


@pytest.mark.parametrize("name", names("mode"))
def test_every_mode_composes(name):
    assert composed(f"mode={name}", "checkpoint=x", verb="sample")["mode"]


@pytest.fixture(scope="module")
def base():
    return composed("model=tiny", "model.channel_mult=[1]", "lr_schedule=constant")  # the smallest: there are hundreds


def test_numbers_may_be_whole():
    module = build_module(composed("model=tiny", "input_perturbation=1", "label_dropout=0"), DIGITS)
    assert (module.input_perturbation, module.label_dropout) == (1, 0)


@pytest.mark.parametrize("share", [11, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("sigma", "prediction"), product(names("sigma"), names("prediction")))
def test_every_combination_trains_and_samples_or_is_refused(base, sigma, prediction, share):
    """All schedules and objectives, of which the fast tests take every eleventh pair; each timestep under one of the
    schedules, samples under one objective."""
    sampled = set()
    for k, (schedule, objective) in enumerate(product(names("schedule"), names("objective"))):
        if (k + k // len(names("objective"))) % share:
            continue
        chosen = {"schedule": schedule, "sigma": sigma, "prediction": prediction, "objective": objective}
        config = base | {group: node(group, name) for group, name in chosen.items()}
        if "num_steps" in config["schedule"]:
            config["schedule"]["num_steps"] = 10
        impossible = (
            (sigma.startswith("learned") and objective not in ("vlb", "hybrid"))
            or (objective == "hybrid" and not sigma.startswith("learned"))
            or sigma == "analytic"
            or (schedule == "jsd" and (prediction == "epsilon" or objective in ("min_snr", "p2")))
        )
        if impossible:
            with pytest.raises(Refused, match="choose"):
                build_module(config, DIGITS)
        else:
            module = trained(config)
            if schedule not in sampled:
                samples(module, config)
                sampled.add(schedule)
            for timestep in names("timestep") if schedule == "linear" else ():
                build_module(config | {"timestep": node("timestep", timestep)}, DIGITS)


def trained(config):
    from ddpm.types import times

    torch.manual_seed(0)
    module = build_module(config, DIGITS)
    x_0 = torch.randint(0, 17, (4, 1, 8, 8)) / 8 - 1
    t = times(torch.tensor([1, 2, 9, 10]), x_0)
    loss = module.objective(module.diffusion, x_0, t, torch.randn_like(x_0)).mean()
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
    return module


def samples(module, config):
    from ddpm.sampling import draw

    with torch.no_grad():
        images = draw(module.diffusion, build_sampler(config, module.diffusion), torch.arange(2), (1, 8, 8), 0)
    assert torch.isfinite(images).all()


@pytest.mark.parametrize("name", names("experiment"))
def test_every_experiment_builds(name):
    config = composed(f"experiment={name}", "data.root=/nowhere")
    size = config["data"].get("image_size", 32)
    facts = Facts("x", (3, size, size), 256, (), "")
    with torch.device("meta"):
        module = build_module(config, facts)
    assert module.batch_size == config["data"]["batch_size"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["sigma=learned_range"], "hybrid or vlb"),
        (["objective=hybrid"], "learned_range"),
        (["schedule=jsd"], "velocity"),
        (["model.channels=30"], "num_groups"),
        (["model.channel_mult=[1,1,1,1,1]"], "halved"),
        (["model.class_conditional=true", "model.nonsense=1"], "nonsense"),
        (["schedule.num_steps=1"], "at least 2"),
        (["schedule.num_steps=many"], "integer"),
        (["sampler.num_steps=2000"], "only 1000"),
        (["sampler.spacing=random"], "spacing"),
        (["sampler=ddim", "sampler.eta=2"], "eta"),
        (["optimizer.lr=-1"], "learning rate"),
        (["optimizer.lr=fast"], "optimizer.lr"),
        (["trainer.max_steps=-1"], "lr_schedule=warmup"),
        (["data.batch_size=0"], "batch_size"),
        (["callbacks.ema.decay=1.5"], "decay"),
        (["optimized_metric=beauty"], "beauty"),
        (["label_dropout=1.0"], "label_dropout"),
        (["input_perturbation=-0.1"], "0 or more"),
        (["zero_terminal_snr=true"], "velocity"),
        (["schedule=constant", "schedule.num_steps=5000", "objective=truncated_snr"], "infinite"),
        (["model.class_conditional=true", "label_dropout=0.0"], "no label"),
        (["schedule=cosine", "sampler.num_steps=3", "sampler.spacing=leading"], "not yet noise"),
        (["sampler.num_steps=1", "sampler.spacing=leading"], "not yet noise"),
        (["zero_terminal_snr=true", "prediction=velocity", "objective=min_snr"], "never be trained"),
        (["schedule=jsd", "prediction=x0", "objective=p2"], "never be trained"),
        (["trainer.max_steps=0"], "trains nothing|at least 1"),
        (["sigma=learned", "objective=vlb", "sampler.num_steps=10"], "cannot be strided"),
        (["schedule._target_=ddpm.schedule.nothing"], "spelling"),
        (["callbacks=[checkpoint]", "+callbacks.samples.every_n_steps=3"], r"add samples to callbacks=\[...\]"),
        (["schedule._target_=ddpm.schedule.math"], "makes no object"),
        (["trainer.accumulate_grad_batches=0"], "greater than 0"),
        (["trainer.accumulate_grad_batches=-1"], "greater than 0"),
        (["trainer.log_every_n_steps=0"], "greater than 0"),
        (["trainer.val_check_interval=0"], "greater than 0"),
        (["trainer.val_check_interval=-1"], "greater than 0"),
        (["trainer.gradient_clip_val=-1"], "greater than 0"),
        (["trainer.gradient_clip_val=0"], "greater than 0"),
        (["trainer.gradient_clip_val=nan"], "a finite number"),
        (["trainer.gradient_clip_val=inf"], "a finite number"),
        (["optimizer.lr=inf"], r"finite number\.$"),
        (["optimizer.lr=nan"], "a finite number"),
        (["optimizer.betas=[0.9,nan]"], "a finite number"),
        (
            ["objective=hybrid", "sigma=learned_range", "objective.bound_weight=nan"],
            "bound_weight=nan.*a finite number",
        ),
        (["objective=min_snr", "objective.gamma=inf"], "a finite number"),
        (["objective=p2", "objective.gamma=nan"], "a finite number"),
        (["objective=p2", "objective.k=nan"], "a finite number"),
        (["objective=truncated_snr", "objective.floor=nan"], "a finite number"),
        (["label_dropout=nan"], "a finite number"),
        (["input_perturbation=inf"], "a finite number"),
    ],
)
def test_impossible_values_are_refused_when_built_in_one_sentence(overrides, words, tmp_path):
    config = composed(*overrides)
    with pytest.raises(Refused, match=words) as refusal:
        settings(config)
        data = build_data(config)
        module = build_module(config, data.facts)
        build_callbacks(config, tmp_path, data, module)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.iterdir())


def test_learned_heads_double_the_output_and_nothing_else():
    config = composed("model=ddpm_cifar10", "sigma=learned_range", "objective=hybrid")
    with torch.device("meta"):
        network = build_module(config, Facts("x", (3, 32, 32), 256, (), "")).diffusion.network
    assert sum(p.numel() for p in network.parameters()) == 35_749_766
