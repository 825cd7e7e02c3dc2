"""A metric measures what came out."""

from ddpm.metric.bits_per_dim import BitsPerDim
from ddpm.metric.classifier import Classifier
from ddpm.metric.data_metric import DataMetric
from ddpm.metric.features import FeatureBatch, Features
from ddpm.metric.fid import FID
from ddpm.metric.inception import Inception
from ddpm.metric.inception_score import InceptionScore
from ddpm.metric.random_conv import RandomConv
from ddpm.metric.sample_metric import SampleMetric
from ddpm.metric.scores import Scores

__all__ = [
    "FID",
    "BitsPerDim",
    "Classifier",
    "DataMetric",
    "FeatureBatch",
    "Features",
    "Inception",
    "InceptionScore",
    "RandomConv",
    "SampleMetric",
    "Scores",
]
