"""Images that are there already get the scores that they would get if they were drawn again."""

import csv
import json
import shutil
import zipfile

import numpy as np
import pytest
import torch
from compose import composed
from PIL import Image
from running import measured
from torch_fidelity.utils import glob_samples_paths

from ddpm.drawing import draw_images
from ddpm.errors import Refused
from ddpm.given import given, mapped
from ddpm.measuring import rows_of

METRICS = "metric=[fid_random,share_nearer_pixels]"
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def drawn(brief_run, tmp_path_factory):
    """Nine images of the model, in the ways that sample.py writes them."""
    folder = tmp_path_factory.mktemp("drawn")
    asked = [
        f"checkpoint={brief_run}",
        "num_images=9",
        "sampler.num_steps=4",
        "trainer=cpu",
        "batch_size=4",
        "npz=true",
    ]
    for out, png in (("both", "true"), ("npz", "false")):
        draw_images(composed(*asked, f"out={folder / out}", f"png={png}", verb="sample"))
    shutil.copytree(folder / "both", folder / "png")
    (folder / "png/samples.npz").unlink()
    shutil.copytree(folder / "png", folder / "others", ignore=shutil.ignore_patterns("drawing.json", "overview"))
    return folder


def test_they_score_as_if_they_were_drawn_again(brief_run, drawn, tmp_path):
    results = tmp_path / "results.jsonl"
    measured(brief_run, results, METRICS)
    for name in ("png", "others"):
        measured(brief_run, results, METRICS, f"images={drawn / name}", "batch_size=3")
    ours, of_drawing, of_others = rows_of(results)
    for row in (of_drawing, of_others):
        assert row["scores"] == pytest.approx(ours["scores"], rel=1e-4)
    assert of_drawing["protocol"]["sampler"] == ours["protocol"]["sampler"]
    assert of_drawing["protocol"]["drawing"]["seed"] == of_drawing["protocol"]["seed"] == 0
    for key in ("sampler", "sigma", "precision", "seed"):  # nobody knows what drew the others
        assert (of_drawing["protocol"][key], of_others["protocol"][key]) == (ours["protocol"][key], None), key


def test_images_are_the_same_whatever_they_lie_in(drawn, tmp_path):
    whole = np.load(drawn / "npz/samples.npz")["arr_0"]
    shutil.copy(drawn / "npz/samples.npz", tmp_path / "theirs.npz")
    np.savez(tmp_path / "numpys.npz", other=np.zeros(3), arr_0=whole)
    np.savez(tmp_path / "fortrans.npz", arr_0=np.asfortranarray(whole))
    with zipfile.ZipFile(tmp_path / "long.npz", "w") as archive, archive.open("arr_0.npy", "w") as file:
        np.lib.format.write_array(file, whole, version=(2, 0))
    model = json.loads((drawn / "npz/drawing.json").read_text())["checkpoint"]
    places = [drawn / name for name in ("both", "npz", "png", "others")]
    places += [tmp_path / name for name in ("theirs.npz", "numpys.npz", "fortrans.npz", "long.npz")]
    keys = set()
    for place in places:
        found = given(str(place), SHAPE, 9, model)
        assert np.array_equal(found.read(torch.tensor([7, 2])).permute(0, 2, 3, 1), whole[[7, 2]]), place
        assert bool(found.origin) == (place in places[:3])
        keys.add(found.protocol()["images_key"])
    assert len(keys) == 1


def test_the_neighbours_are_left_beside_the_results(brief_run, tmp_path, capsys):
    for seed in (0, 1):
        measured(brief_run, tmp_path / "results.jsonl", METRICS, f"seed={seed}")
    told = "".join(capsys.readouterr().out.split())
    pictures = sorted((tmp_path / "nearest").glob("share_nearer_pixels-*.png"))
    assert len(pictures) == 2
    for picture in pictures:
        assert f"share_nearer_pixels:{picture}" in told
        assert Image.open(picture).size[0] > 500
        with picture.with_suffix(".csv").open(newline="") as file:
            assert {line["sample"] for line in csv.DictReader(file)} == {f"{i}" for i in range(8)}


def test_others_who_list_the_folder_find_its_images_alone(drawn):
    """By torch-fidelity's own listing; pytorch-fid's looks into no folder below either."""
    found = glob_samples_paths(str(drawn / "both"), False, "png,jpg,jpeg,webp", verbose=False)
    assert sorted(found) == [str(drawn / f"both/{i:06d}.png") for i in range(9)]
    assert [path.name for path in (drawn / "both/overview").iterdir()] == ["grid.png"]


def test_no_more_is_read_than_is_looked_at(drawn):
    assert isinstance(mapped(drawn / "npz/samples.npz"), np.memmap)


def test_what_can_not_be_scored_is_refused(drawn, tmp_path):
    model = json.loads((drawn / "png/drawing.json").read_text())["checkpoint"]
    with pytest.raises(Refused, match="another model"):
        given(str(drawn / "png"), SHAPE, 9, "another")
    with pytest.raises(Refused, match="holds 9 images, not num_images=10"):
        given(str(drawn / "png"), SHAPE, 10, model)
    with pytest.raises(Refused, match=r"shape \(1, 8, 8\), but those of the model's data \(3, 8, 8\)"):
        given(str(drawn / "npz"), (3, 8, 8), 9, model)
    with pytest.raises(Refused, match="neither a folder"):
        given(str(tmp_path / "nothing"), SHAPE, 9, model)
    with pytest.raises(Refused, match="no images in"):
        given(str(tmp_path), SHAPE, 9, model)
    shutil.copytree(drawn / "png", tmp_path / "half")
    (tmp_path / "half/000003.png").unlink()
    with pytest.raises(Refused, match="not finished"):
        given(str(tmp_path / "half"), SHAPE, 2, model)
    for arrays, words in (
        ({"other": np.zeros(3)}, "arr_0"),
        ({"arr_0": np.zeros((3, 8, 8, 1))}, "float64"),
        ({"arr_0": np.zeros((3, 8, 8), dtype=np.uint8)}, "not uint8 of"),
        ({"arr_0": np.full((3, 8, 8, 1), print)}, "holds objects"),
    ):
        np.savez(tmp_path / "x.npz", **arrays)
        with pytest.raises(Refused, match=words):
            given(str(tmp_path / "x.npz"), SHAPE, 3, model)
    (tmp_path / "x.npz").write_bytes((drawn / "npz/samples.npz").read_bytes()[:400])
    with pytest.raises(Refused, match="is damaged"):
        given(str(tmp_path / "x.npz"), SHAPE, 3, model)
    np.savez_compressed(tmp_path / "x.npz", arr_0=np.zeros((3, 8, 8, 1), dtype=np.uint8))
    with pytest.raises(Refused, match=r"is compressed, which numpy\.savez would not"):
        given(str(tmp_path / "x.npz"), SHAPE, 3, model)
    for text in ("[1", "[1]", "3"):
        (tmp_path / "half/drawing.json").write_text(text)
        with pytest.raises(Refused, match=r"drawing\.json tells nothing"):
            given(str(tmp_path / "half"), SHAPE, 2, model)
