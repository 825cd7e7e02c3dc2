"""The recipes of the papers, number by number.

Ho et al. (2020): Appendix B, Table 2 and code. Nichol & Dhariwal (2021): README and code of improved-diffusion, which
give L_hybrid and L_vlb on the cosine schedule, and the code the scaled linear one. Their Appendix A, from memory and
unchecked: that the rows of the linear schedule have dropout 0.1.
"""

from functools import cache
from typing import Any

import pytest
import torch
from compose import composed
from yamls import names

from ddpm.instantiate import make

SMALL_NET = {"channels": 128, "channel_mult": [1, 2, 2, 2], "num_res_blocks": 2, "num_heads": 1, "norm_eps": 1e-6}
LARGE_NET = SMALL_NET | {"channel_mult": [1, 1, 2, 2, 4, 4]}
NICHOL_NET = SMALL_NET | {"num_res_blocks": 3, "num_heads": 4, "norm_eps": 1e-5}
HO_NET = {"attention_resolutions": [16], "num_groups": 32, "scale_shift_norm": False, "rescale_time": False}
IDDPM_NET = {"attention_resolutions": [16, 8], "num_groups": 32, "scale_shift_norm": True, "rescale_time": True}
OF_MODEL = {
    "ho_32": SMALL_NET | HO_NET,
    "ho_256": LARGE_NET | HO_NET,
    "nichol": NICHOL_NET | IDDPM_NET,
}
ADAM = {"betas": [0.9, 0.999], "eps": 1e-8}
HO = {"optimizer": "Adam", "rise": 5000, "clip": 1.0}
NICHOL = {"optimizer": "AdamW", "rise": None, "clip": None}

TRAINED = {  # of which paper, model, dropout, lr, batch, steps, flips
    "ho2020_cifar10": (HO, "ho_32", 0.1, 2e-4, 128, 800_000, True),
    "ho2020_cifar10_epsilon_vlb_fixed": (HO, "ho_32", 0.1, 2e-4, 128, 800_000, True),
    "ho2020_cifar10_epsilon_vlb_learned": (HO, "ho_32", 0.1, 2e-4, 128, 800_000, True),
    "ho2020_cifar10_mean_simple": (HO, "ho_32", 0.1, 2e-4, 128, 800_000, True),
    "ho2020_cifar10_mean_vlb_fixed": (HO, "ho_32", 0.1, 2e-4, 128, 800_000, True),
    "ho2020_cifar10_mean_vlb_learned": (HO, "ho_32", 0.1, 2e-4, 128, 800_000, True),
    "ho2020_celebahq256": (HO, "ho_256", 0.0, 2e-5, 64, 500_000, True),
    "ho2020_lsun256": (HO, "ho_256", 0.0, 2e-5, 64, 1_200_000, True),
    "nichol2021_cifar10_1k_linear_simple": (NICHOL, "nichol", 0.1, 1e-4, 128, 500_000, False),
    "nichol2021_cifar10_4k_linear_simple": (NICHOL, "nichol", 0.1, 1e-4, 128, 500_000, False),
    "nichol2021_cifar10_4k_linear_hybrid": (NICHOL, "nichol", 0.1, 1e-4, 128, 500_000, False),
    "nichol2021_cifar10_4k_cosine_simple": (NICHOL, "nichol", 0.3, 1e-4, 128, 500_000, False),
    "nichol2021_cifar10_4k_cosine_hybrid": (NICHOL, "nichol", 0.3, 1e-4, 128, 500_000, False),
    "nichol2021_cifar10_4k_cosine_vlb": (NICHOL, "nichol", 0.3, 1e-4, 128, 500_000, False),
}

COSINE = {"_target_": "ddpm.schedule.cosine", "offset": 0.008, "beta_max": 0.999}
LINEAR = {"_target_": "ddpm.schedule.linear", "beta_1": 1e-4, "beta_T": 0.02}
PLAIN, SCALED = LINEAR | {"rescale": False}, LINEAR | {"rescale": True}  # scaled: both ends times 1000 / T
SIMPLE, HYBRID = {"_target_": "ddpm.objective.Simple"}, {"_target_": "ddpm.objective.Hybrid", "bound_weight": 0.001}
KL = {"_target_": "ddpm.objective.Bound", "times_num_steps": False}
RESCALED_KL = KL | {"times_num_steps": True}

DIFFUSED = {  # schedule, T, prediction, objective, sigma, timestep
    "ho2020_cifar10": (PLAIN, 1000, "Epsilon", SIMPLE, "Beta", "Uniform"),
    "ho2020_cifar10_epsilon_vlb_fixed": (PLAIN, 1000, "Epsilon", KL, "Beta", "Uniform"),
    "ho2020_cifar10_epsilon_vlb_learned": (PLAIN, 1000, "Epsilon", KL, "Learned", "Uniform"),
    "ho2020_cifar10_mean_simple": (PLAIN, 1000, "Mean", SIMPLE, "Beta", "Uniform"),
    "ho2020_cifar10_mean_vlb_fixed": (PLAIN, 1000, "Mean", KL, "Beta", "Uniform"),
    "ho2020_cifar10_mean_vlb_learned": (PLAIN, 1000, "Mean", KL, "Learned", "Uniform"),
    "ho2020_celebahq256": (PLAIN, 1000, "Epsilon", SIMPLE, "BetaTilde", "Uniform"),
    "ho2020_lsun256": (PLAIN, 1000, "Epsilon", SIMPLE, "BetaTilde", "Uniform"),
    "nichol2021_cifar10_1k_linear_simple": (SCALED, 1000, "Epsilon", SIMPLE, "Beta", "Uniform"),
    "nichol2021_cifar10_4k_linear_simple": (SCALED, 4000, "Epsilon", SIMPLE, "Beta", "Uniform"),
    "nichol2021_cifar10_4k_linear_hybrid": (SCALED, 4000, "Epsilon", HYBRID, "LearnedRange", "Uniform"),
    "nichol2021_cifar10_4k_cosine_simple": (COSINE, 4000, "Epsilon", SIMPLE, "Beta", "Uniform"),
    "nichol2021_cifar10_4k_cosine_hybrid": (COSINE, 4000, "Epsilon", HYBRID, "LearnedRange", "Uniform"),
    "nichol2021_cifar10_4k_cosine_vlb": (COSINE, 4000, "Epsilon", RESCALED_KL, "LearnedRange", "LossAware"),
}

PARAMETERS = {  # where they were published: image size, count
    "ho2020_cifar10": (32, 35_746_307),
    "ho2020_celebahq256": (256, 113_673_219),
    "ho2020_lsun256": (256, 113_673_219),
    "nichol2021_cifar10_4k_cosine_hybrid": (32, 52_546_438),
    "nichol2021_cifar10_4k_linear_hybrid": (32, 52_546_438),
    "nichol2021_cifar10_4k_cosine_vlb": (32, 52_546_438),
}


@cache
def recipe(name: str) -> dict[str, Any]:
    return composed(f"experiment={name}", "data.root=/nowhere")


def kind(node: dict[str, Any]) -> str:
    return node["_target_"].rpartition(".")[2]


@pytest.mark.parametrize("name", TRAINED)
def test_it_is_trained_as_in_the_paper(name):
    config = recipe(name)
    paper, model, dropout, lr, batch, steps, flips = TRAINED[name]
    assert config["model"].items() >= (OF_MODEL[model] | {"dropout": dropout, "class_conditional": False}).items()
    assert kind(config["optimizer"]) == paper["optimizer"]
    assert config["optimizer"].items() >= (ADAM | {"lr": lr}).items()
    assert config["optimizer"].get("weight_decay", 0) == 0
    assert config["lr_schedule"].get("num_steps") == paper["rise"]
    assert kind(config["lr_schedule"]) == ("warmup" if paper["rise"] else "constant")
    assert config["trainer"]["gradient_clip_val"] == paper["clip"]
    assert config["trainer"]["max_steps"] == steps
    assert (config["data"]["batch_size"], config["data"]["flip"]) == (batch, flips)
    assert config["callbacks"]["ema"].items() >= {"decay": 0.9999, "warmup": False}.items()
    assert (config["input_perturbation"], config["trainer"]["accumulate_grad_batches"]) == (0, 1)


@pytest.mark.parametrize("name", DIFFUSED)
def test_it_diffuses_as_in_the_paper(name):
    config = recipe(name)
    schedule, num_steps, prediction, objective, sigma, timestep = DIFFUSED[name]
    assert config["schedule"] == schedule | {"num_steps": num_steps}
    assert config["objective"] == objective
    chosen = [kind(config[group]) for group in ("prediction", "sigma", "timestep", "sampler", "decoder")]
    assert chosen == [prediction, sigma, timestep, "Ancestral", "Exact"]
    assert config["sampler"].items() >= {"num_steps": None, "clip": True}.items()
    assert not config["zero_terminal_snr"]


@pytest.mark.parametrize("name", PARAMETERS)
def test_it_has_the_papers_number_of_parameters(name):
    config = recipe(name)
    size, count = PARAMETERS[name]
    learned = kind(config["sigma"]).startswith("Learned")
    with torch.device("meta"):
        network = make(config["model"], "model", shape=(3, size, size), num_classes=10, learned=learned)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


def test_every_recipe_is_in_the_tables():
    assert sorted(TRAINED) == sorted(DIFFUSED) == names("experiment")
