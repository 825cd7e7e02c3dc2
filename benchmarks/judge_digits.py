"""A judge of digits that never saw the model: `python benchmarks/judge_digits.py FOLDER` of sampled PNGs.

An SVM trained on the 1,500 real training digits gives the samples and the 297 held-out real digits an
inception score each; their ratio says how far the samples look like digits of all kinds. The share of samples
that lie nearer to a training image than the nearest 2.5 % of held-out digits do says whether they are copies.
"""

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC

from ddpm.data.digits import Digits

Pixels = np.ndarray  # (n, 64), grey levels 0 to 16


def real(split: str) -> tuple[Pixels, np.ndarray]:
    """The digits of a split and their labels."""
    data = Digits(root=None, batch_size=1, num_workers=0, flip=False, seed=0)
    levels, labels = data.load(split)[range(len(data.load(split)))]
    return levels.flatten(1).numpy().astype(float), labels.numpy()


def numbered(folder: Path) -> list[Path]:
    """The numbered images of a folder."""
    return sorted(folder.glob("[0-9]*.png"))


def sampled(folder: Path) -> Pixels:
    """The same, in the grey levels of the data."""
    images = [np.asarray(Image.open(path)) for path in numbered(folder)]
    return np.round(np.stack(images).reshape(len(images), -1) / 255 * 16)


def inception_score(p: np.ndarray) -> float:
    """exp E KL(p(y|x) || p(y)) of class probabilities (n, classes), one split."""
    return float(np.exp((p * (np.log(p + 1e-12) - np.log(p.mean(0)))).sum(1).mean()))


def nearest(x: Pixels, among: Pixels) -> np.ndarray:
    """The distance of each image to the nearest of others."""
    squared = (x**2).sum(1)[:, None] + (among**2).sum(1)[None] - 2 * x @ among.T
    distances: np.ndarray = np.sqrt(squared.min(1).clip(min=0))
    return distances


@cache
def trained() -> CalibratedClassifierCV:
    """The judge."""
    return CalibratedClassifierCV(SVC(C=10, gamma=0.001), ensemble=False).fit(*real("train"))


def judge(samples: Pixels) -> dict[str, float]:
    """What the judge says."""
    svm, (train, _), (held_out, truth) = trained(), real("train"), real("test")
    of_real, of_samples = (inception_score(svm.predict_proba(x)) for x in (held_out, samples))
    threshold = np.quantile(nearest(held_out, train), 0.025)
    return {
        "accuracy of the judge on held-out digits": svm.score(held_out, truth),
        "inception score of held-out digits": of_real,
        "inception score of the samples": of_samples,
        "ratio": of_samples / of_real,
        "share nearer to a training image than 2.5 % of held-out digits": float(
            (nearest(samples, train) < threshold).mean()
        ),
    }


def main(arguments: Sequence[str]) -> None:
    """Judge the images of one folder. Anything else ends in an error."""
    if len(arguments) != 1 or not numbered(Path(arguments[0])):
        sys.exit(
            f"error: {' '.join(arguments) or 'nothing'} is no folder of images of sample.py; give one, as in "
            "python benchmarks/judge_digits.py samples."
        )
    for name, value in judge(sampled(Path(arguments[0]))).items():
        print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main(sys.argv[1:])
