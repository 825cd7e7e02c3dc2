"""A metric measures what came out."""

from ddpm.metric.bits_per_dim import BitsPerDim
from ddpm.metric.classifier import Classifier
from ddpm.metric.data_metric import DataMetric
from ddpm.metric.dinov2 import DINOv2
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.fid import FID, FrechetDistance
from ddpm.metric.inception import Inception
from ddpm.metric.inception_score import InceptionScore
from ddpm.metric.kept import KeptMetric
from ddpm.metric.kid import KID
from ddpm.metric.nearest import Nearest
from ddpm.metric.pixels import Pixels
from ddpm.metric.precision_recall import PrecisionRecall
from ddpm.metric.random_conv import RandomConv
from ddpm.metric.sample_metric import SampleMetric, SummedMetric
from ddpm.metric.scores import Scores

__all__ = [
    "FID",
    "KID",
    "BitsPerDim",
    "Classifier",
    "DINOv2",
    "DataMetric",
    "FeatureBatch",
    "Features",
    "FrechetDistance",
    "Inception",
    "InceptionScore",
    "KeptMetric",
    "Nearest",
    "Pixels",
    "PrecisionRecall",
    "RandomConv",
    "SampleMetric",
    "Scores",
    "SummedMetric",
]
