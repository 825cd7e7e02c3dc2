"""Files from strangers: each bad one ends in one sentence, nothing in it is run and nothing is written."""

import os
import pickle
import sys
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path

import hostile
import pytest
import torch
from hostile import (
    BELOW,
    BETAS,
    CANARY,
    FACTS,
    GOING_ON,
    MOMENTS,
    PARTS,
    PICKLES,
    RATES,
    SECRET,
    TARGETS,
    UNTOLD,
    VALUES,
    WEIGHTS,
    WHOLE,
)
from PIL import Image
from safetensors.torch import save
from yamls import node

from ddpm import strangers
from ddpm.checkpoint import MODEL_GROUPS, load, loaded, refuse_foreign, resumable
from ddpm.cli import sentence
from ddpm.drawn import Pictures, Shards, finished, open_drawing
from ddpm.errors import Refused
from ddpm.measuring import rows_of
from ddpm.metric.random_conv import RandomConv
from ddpm.metric.reference import given
from ddpm.metric.weights import tensors
from ddpm.mode.files import read_image, read_mask
from ddpm.opening import data_of
from ddpm.runs import status
from ddpm.training import refuse_change, refuse_misfit


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where the files are. The working directory is another one, in which nothing may be written; and there is a
    secret in the environment."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv(SECRET, "canary-5f1e77")
    yield tmp_path
    assert not CANARY.exists()
    assert not list(place.rglob("*"))


def refused(work, *arguments):
    """What is said of it: a sentence that a person can read, and that tells no secret."""
    with pytest.raises(Refused) as caught:
        work(*arguments)
    told = sentence(caught.value)
    assert told.isprintable()
    assert len(told) < 2000
    assert os.environ[SECRET] not in told
    return told


def written(folder, data, name="x.ckpt"):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def opened(folder, data):
    return load(written(folder, data))


def test_the_file_that_the_others_are_made_of_opens(folder):
    assert opened(folder, hostile.zipped(hostile.whole())).facts == hostile.DIGITS


@pytest.mark.parametrize("name", PICKLES)
def test_a_file_that_is_no_plain_data_is_refused(name, folder):
    told = refused(opened, folder, PICKLES[name]())
    assert "damaged or no checkpoint" in told, told


@pytest.mark.parametrize("group", [*MODEL_GROUPS, "data"])
def test_a_config_may_only_name_choices_of_ours(group):
    own = hostile.whole()["ddpm"]["config"][group]
    refuse_foreign(own, group)
    targets = [{"_target_": target} for target in (*TARGETS, None, 5, ["os.system"], {"a": 1})]
    for bad in (*targets, *(own | below for below in BELOW), None, 5, "x", [], {}):
        assert "not one of ours" in refused(refuse_foreign, bad, group)


@pytest.mark.parametrize("group", [*MODEL_GROUPS, "data"])
def test_a_file_is_opened_by_that_rule(group, folder):
    file = hostile.as_group(group, {"_target_": "os.system", "command": f"touch {CANARY}"})
    assert "not one of ours" in refused(lambda: data_of(opened(folder, file), {}))


def changed(*place, **values):
    """What a checkpoint holds, some of it changed before it is opened."""
    content = below = hostile.whole()
    for key in place:
        below = below[key]
    below.update(values)
    return lambda: loaded(content, Path("x.ckpt"), "ema")


@pytest.mark.parametrize(("group", "values"), VALUES, ids=lambda x: str(x)[:40])
def test_values_that_are_impossible_or_not_those_of_the_weights_are_refused(group, values):
    refused(changed("ddpm", "config", group, **values))


@pytest.mark.parametrize("betas", BETAS, ids=str)
def test_no_betas_are_refused(betas):
    refused(changed("ddpm", "config", schedule={"_target_": "ddpm.schedule.custom", "betas": betas}))


@pytest.mark.parametrize("facts", FACTS, ids=str)
def test_impossible_facts_are_refused(facts):
    refused(changed("ddpm", "facts", **facts))


def test_what_is_not_changed_opens():
    assert changed()().step == 7


def test_names_of_classes_are_only_told():
    names = ["../../../etc/passwd", "\x1b]0;title\x07\x1b[2J", f"${{oc.env:{SECRET}}}", "a" * 10**5, "[/bold]", ""]
    assert changed("ddpm", "facts", class_names=names)().facts.num_classes == 6


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_are_no_numbers_are_refused(name):
    refused(changed("state_dict", **{"diffusion.network.conv_in.weight": WEIGHTS[name]()}))


@pytest.mark.parametrize("name", UNTOLD)
def test_a_file_that_does_not_tell_its_data_is_refused_where_they_are_asked_for(name, folder):
    model = opened(folder, hostile.changed(UNTOLD[name]))
    assert "the checkpoint's" in refused(data_of, model, {})


@pytest.mark.parametrize("name", GOING_ON)
def test_training_does_not_go_on_with_a_config_that_lacks_something(name, folder):
    content, own = hostile.whole() | {"callbacks": SAVED, "loops": {}}, hostile.whole()["ddpm"]["config"]
    refuse_change(own, own)
    GOING_ON[name](content)
    before = resumable(written(folder, hostile.zipped(content)))["ddpm"]["config"]
    refused(refuse_change, before, own)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_lacks_something_is_refused(name, folder):
    refused(opened, folder, hostile.changed(WHOLE[name]))


def spread(folder, parts):
    """The folder of a checkpoint of so many ranks."""
    for rank, part in enumerate(parts):
        written(folder / "x.ckpt", hostile.zipped(part), f"rank_{rank:05d}.ckpt")
    return folder / "x.ckpt"


def test_the_parts_that_the_others_are_made_of_open(folder):
    weights = load(spread(folder, hostile.parts())).diffusion.state_dict()
    for name, value in hostile.whole()["state_dict"].items():
        assert torch.equal(weights[name.removeprefix("diffusion.")], value), name


@pytest.mark.parametrize("name", PARTS)
def test_parts_that_do_not_belong_together_are_refused(name, folder):
    parts = hostile.parts()
    PARTS[name](*parts)
    assert "damaged or no checkpoint" in refused(load, spread(folder, parts))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_part_is_told(rank, folder):
    whole = spread(folder, hostile.parts())
    (whole / f"rank_{rank:05d}.ckpt").unlink()
    assert ("it has 1 of 2 parts" if rank else "there is no checkpoint") in refused(load, whole)


DATA = {  # a stranger's wish, and what is said of it
    "a root": ("image_folder", {"root": "/etc"}, "does not tell where its data are"),
    "a root above": ("image_folder", {"root": "../.."}, "does not tell where its data are"),
    "a download": ("mnist", {"root": "x", "download": True}, "missing: pass data.download=true"),
    "a repository": ("huggingface", {"path": "a/b", "download": True}, "there is no folder a/b"),
    "large images": ("image_folder", {"root": ".", "image_size": 10**9}, ""),
    "a seed": ("digits", {}, "seed"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_checkpoint_neither_downloads_nor_looks_around(name, folder):
    choice, wishes, told = DATA[name]
    content, own = hostile.whole(), node("data", choice) | wishes
    content["ddpm"]["config"] |= {"data": own} | ({"seed": "x"} if name == "a seed" else {})
    shape = {"mnist": (1, 28, 28), "huggingface": (3, 64, 64)}.get(choice, (1, 8, 8))
    model = opened(folder, hostile.zipped(content))
    model = replace(model, facts=replace(model.facts, shape=shape))
    assert told in refused(lambda: data_of(model, {}).load("test"))


def test_a_users_root_counts_and_that_of_the_run_which_is_told(folder, capsys):
    pictures = folder / "pictures"
    pictures.mkdir()
    for name in "ab":
        Image.new("L", (8, 8)).save(pictures / f"{name}.png")
    content = hostile.whole()
    content["ddpm"]["config"]["data"] = node("data", "image_folder") | {"root": "/etc", "channels": 1, "image_size": 8}
    model = opened(folder, hostile.zipped(content))
    assert len(data_of(model, {"root": str(pictures)}).load("train")) == 2
    assert not capsys.readouterr().out
    (folder / "run").mkdir()
    run = load(written(folder / "run/checkpoints", hostile.zipped(content)))
    target = content["ddpm"]["config"]["data"]["_target_"]
    for text in (
        "",
        "data: 5",
        "[",
        "a: &a [1]\nb: *c",
        f"data: {{_target_: {target}, root: 7}}",
        "!!python/object:x {}",
    ):
        (folder / "run/config.yaml").write_text(text)
        assert "does not tell" in refused(data_of, run, {})
    (folder / "run/config.yaml").write_text(f"data: {{_target_: {target}, root: {pictures}, download: true}}")
    assert len(data_of(run, {}).load("train")) == 2
    assert f"data.root='{pictures}', as the config.yaml of the run says" in capsys.readouterr().out


SAVED = {"SaveLast": {"log_bytes": 0}}
RESUMED = {
    "counts below 0": {"loops": {"fit_loop": {"a": [-1]}}},
    "counts that are none": {"loops": {"fit_loop": {"a": "x"}}},
    "no counts": {"loops": None},
    "no callbacks": {"callbacks": None},
    "no place in the log": {"callbacks": {"SaveLast": {}}},
    "a place before the log": {"callbacks": {"SaveLast": {"log_bytes": -5}}},
    "a best score in words": {"callbacks": SAVED | {"Evaluate": {"best": "x", "scores": {}}}},
    "scores in words": {"callbacks": SAVED | {"Evaluate": {"best": None, "scores": {"fid": "x"}}}},
    "a module for scores": {"callbacks": SAVED | {"Evaluate": {"best": None, "scores": {"_target_": "this.s"}}}},
    "skipped steps in words": {"callbacks": SAVED | {"StopOnNonFinite": {"skipped": "x", "in_a_row": 0}}},
    **{f"a learning rate with {str(more)[:40]}": {"lr_schedulers": [more]} for more in RATES},
    "learning rates in words": {"lr_schedulers": "x"},
    "a loss scaler in words": {"MixedPrecision": {"scale": "x"}},
    "a loss scaler of other names": {"native_amp_scaling_state": {"step": 1}},
    "averages of a step in words": {"callbacks": SAVED | {"EMA": {"latest_update_step": "x"}}},
    "an optimiser of nan": {"optimizer_states": [{"state": {0: {"step": torch.tensor(float("nan"))}}}]},
}


@pytest.mark.parametrize("name", RESUMED)
def test_training_goes_on_from_nothing_that_is_not_plain(name, folder):
    measured = {"best": None, "best_of": None, "scores": {"fid": float("nan"), "kid": 1}}
    whole = {"loops": {"fit_loop": {"a": 1}}, "callbacks": SAVED | {"Evaluate": measured, "StopOnNonFinite": {}}}
    assert resumable(written(folder, hostile.changed(lambda c: c.update(whole))))
    refused(resumable, written(folder, hostile.changed(lambda c: c.update(whole | RESUMED[name]))))
    assert "this" not in sys.modules


def stepped():
    """Another optimiser with the same state, and how it was made."""
    make, network = partial(torch.optim.AdamW, fused=True), torch.nn.Linear(3, 5)
    network(torch.randn(2, 3)).sum().backward()
    first = make(network.parameters())
    first.step()
    return make, first, make(network.parameters())


def test_the_state_of_an_optimiser_lies_as_its_parameters_do():
    """A fused step reads and writes as many numbers in a row as they have."""
    make, first, again = stepped()
    content = deepcopy(first.state_dict())
    content["state"][0]["exp_avg"] = content["state"][0]["exp_avg"].t().contiguous().t()
    content["state"][0]["exp_avg_sq"] = torch.rand(15).as_strided((5, 3), (1, 1), 8)
    overlapping = content["state"][0]["exp_avg_sq"].clone()
    again.load_state_dict(content)
    refuse_misfit(again, make)
    weight = again.param_groups[0]["params"][0]
    for name, value in (("exp_avg", first.state[weight]["exp_avg"]), ("exp_avg_sq", overlapping)):
        assert again.state[weight][name].stride() == weight.stride()
        assert torch.equal(again.state[weight][name], value)


@pytest.mark.parametrize("name", MOMENTS)
def test_an_optimiser_goes_on_from_nothing_but_its_own(name):
    make, first, again = stepped()
    again.load_state_dict(deepcopy(first.state_dict()))
    refuse_misfit(again, make)
    content = deepcopy(first.state_dict())
    MOMENTS[name](content["state"])
    with pytest.raises((ValueError, AttributeError, KeyError)):  # which end a run before it has begun
        again.load_state_dict(content)
        refuse_misfit(again, make)


SHAPED = ("harmless", "terabyte", "one number", "many tensors", "%")  # of weights the shapes are compared later


@pytest.mark.parametrize("name", [name for name in PICKLES if not any(word in name for word in SHAPED)])
def test_weights_of_others_are_only_tensors(name, folder):
    with pytest.raises(ValueError, match=r"damaged or holds more|holds no tensors") as caught:
        tensors(written(folder, PICKLES[name]()))
    assert len(str(caught.value)) < 1000


def test_weights_of_the_format_before_zip_are_read(folder):
    assert torch.equal(tensors(written(folder, hostile.legacy({"x": torch.arange(3.0)})))["x"], torch.arange(3.0))
    with pytest.raises(ValueError, match="names 'posix system'"):
        tensors(written(folder, hostile.legacy({"x": hostile.touching()})))


def test_weights_in_safetensors_are_read_and_bad_ones_are_refused(folder):
    good = save({"x": torch.arange(3.0)})
    assert torch.equal(tensors(written(folder, good, "x.safetensors"))["x"], torch.arange(3.0))
    header = b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    claims = len(header).to_bytes(8, "little") + header + bytes(12)
    for bad in (good[:-4], good[:20], claims, (2**62).to_bytes(8, "little"), b"", pickle.dumps(hostile.touching())):
        with pytest.raises(ValueError, match="damaged or holds more"):
            tensors(written(folder, bad, "x.safetensors"))


def statistics(mu=None, sigma=None, compressed=False, **more):
    """An .npz for metric.fid.reference, of features of width 64, of which parts are another thing."""
    usual = {
        "mu": hostile.array((64,), "<f8", bytes(512)),
        "sigma": hostile.array((64, 64), "<f8", bytes(2**15)),
    }
    given = {name: part for name, part in {"mu": mu, "sigma": sigma}.items() if part is not None}
    return hostile.npz(compressed, **usual | given | more)


STATISTICS = {
    "objects": lambda: statistics(mu=hostile.objects()),
    "inflates": lambda: statistics(sigma=hostile.array((724, 724), "<f8", bytes(2**22)), compressed=True),
    "claims": lambda: statistics(mu=hostile.array((10**12,), "<f8", b"")),
    "is short": lambda: statistics(mu=hostile.array((64,), "<f8", b"")),
    "is below 0": lambda: statistics(mu=hostile.array((-64,), "<f8", b"")),
    "is nan": lambda: statistics(mu=hostile.array((64,), "<f8", b"\xff" * 512)),
    "words": lambda: statistics(mu=hostile.array((64,), "<U8", bytes(64 * 32))),
    "a count of one": lambda: statistics(n=hostile.array((), "<i8", (1).to_bytes(8, "little"))),
    "counts": lambda: statistics(n=hostile.array((10**12,), "<i8", b"")),
    "a header that is code": lambda: statistics(mu=b"\x93NUMPY\x01\x00\x10\x00" + b"__import__('os')"),
    "a header of no version": lambda: statistics(mu=b"\x93NUMPY\x09\x00"),
    "a pickle": lambda: pickle.dumps(hostile.touching()),
    "noise": lambda: b"PK\x03\x04" + bytes(100),
    "nothing": lambda: b"",
}


def test_the_statistics_that_the_others_are_made_of_open(folder):
    features = RandomConv(channels=[16], resolution=8, seed=0)
    assert given(written(folder, statistics(), "x.npz"), features).mu.shape == (64,)


def test_a_dictionary_is_plain_whatever_its_methods_were(folder):
    found = strangers.content(written(folder, hostile.hiding()))
    assert (type(found), found) == (dict, {})


@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_of_others_are_only_numbers(name, folder):
    features = RandomConv(channels=[16], resolution=8, seed=0)
    refused(given, written(folder, STATISTICS[name](), "x.npz"), features)


IMAGES = {
    "a bomb": lambda: hostile.bomb(20_000),
    "a bomb that Pillow only warns of": lambda: hostile.bomb(12_000),
    "words that inflate": lambda: hostile.worded(10**7),
    "postscript": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(touch) system\n",
    "a pickle": lambda: pickle.dumps(hostile.touching()),
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="/etc/passwd"/></svg>',
    "noise": lambda: b"\x89PNG\r\n\x1a\n" + bytes(1000),
    "nothing": lambda: b"",
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_of_others_are_only_pixels(name, folder):
    path = str(written(folder, IMAGES[name](), "x[bold].png"))
    assert "cannot be read as an image" in refused(read_image, path, hostile.DIGITS)
    assert "cannot be read as an image" in refused(read_mask, path, 8, 8)


def test_an_image_is_told_with_any_name_and_turned_as_a_viewer_does(folder, capsys):
    image = Image.new("L", (10, 20), 255)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(folder / "x[bold].png", exif=exif)
    assert read_image(str(folder / "x[bold].png"), hostile.DIGITS).shape == (1, 1, 8, 8)
    assert "x[bold].png is 20 x 10" in capsys.readouterr().out


JSON = {
    "nested": b"[" * 10**5,
    "a list": b"[1]",
    "a word": b'"x"',
    "a number": b"5",
    "digits": b"9" * 10**4,
    "noise": bytes(range(256)),
    "half": b'{"protocol": {',
    "of other kinds": b'{"protocol": 5, "scores": "x", "overrides": 7, "state": []}',
    "scores": b'{"protocol": [1], "scores": {"fid": "x"}}',
}


@pytest.mark.parametrize("name", JSON)
def test_results_states_and_drawings_of_others_are_read_or_refused(name, folder):
    assert "holds other things" in refused(rows_of, written(folder, JSON[name], "results.jsonl"))
    written(folder, JSON[name], "status.json")
    assert "status.json" in refused(status, folder)
    written(folder, JSON[name], "drawing.json")
    told = refused(open_drawing, Pictures(folder, 4), {"seed": 0}, False)
    assert "unknown origin" in told or "another seed" in told


SHARDS = {
    "objects": lambda: hostile.npz(arr_0=hostile.objects()),
    "claims": lambda: hostile.npz(arr_0=hostile.array((4, 10**6, 10**6, 1), "|u1", b"")),
    "inflates": lambda: hostile.npz(True, arr_0=hostile.array((4, 1024, 1024, 1), "|u1", bytes(2**22))),
    "numbers": lambda: hostile.npz(arr_0=hostile.array((4, 2, 2, 1), "<f8", bytes(128))),
    "another count": lambda: hostile.npz(arr_0=hostile.array((5, 2, 2, 1), "|u1", bytes(20))),
    "flat": lambda: hostile.npz(arr_0=hostile.array((4,), "|u1", bytes(4))),
    "another name": lambda: hostile.npz(x=hostile.array((4, 2, 2, 1), "|u1", bytes(16))),
    "noise": lambda: bytes(100),
}


@pytest.mark.parametrize("name", SHARDS)
def test_shards_of_others_are_only_pixels(name, folder):
    path = written(folder / "shards", SHARDS[name](), "000000-000003.npz")
    refused(Shards(folder, 4).read, torch.arange(4))
    refused(finished, path, 4)


def test_names_of_shards_and_pictures_are_only_small_numbers(folder):
    for name in ("000000-999999999999", "0-3", "x", "000000-000003-000004", "٠٠٠٠٠٠-٠٠٠٠٠٣", "..-.."):
        written(folder / "shards", b"", f"{name}.npz")
        written(folder, b"", f"{name}.png")
    assert Shards(folder, 4).indices() == Pictures(folder, 4).indices() == set()
    written(folder / "shards", b"", "000000-999999999.npz")
    assert len(Shards(folder, 4).indices()) < 2 * 10**6


@pytest.mark.parametrize("data", [hostile.bomb(20_000), hostile.bomb(12_000), b"", bytes(100)])
def test_pictures_of_others_are_only_pixels(data, folder):
    written(folder, data, "000000.png")
    refused(Pictures(folder, 1).read, torch.arange(1))


def test_a_file_of_words_has_bounds(folder):
    with (folder / "status.json").open("wb") as file:
        file.truncate(10**9)  # of which the disk has nothing
    assert "too large" in refused(status, folder)
