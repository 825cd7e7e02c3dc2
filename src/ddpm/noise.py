"""Randomness as a function: every random number of the framework is addressed, none is drawn.

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") maps an address
(seed, stream, image, step, element) to 32 random bits. A number thus depends neither on the batch
size, nor on the rank that computes it, nor on what was asked for before.
"""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

Word = TypeVar("Word", int, Tensor)

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


class Stream(IntEnum):
    """What a number is for: the noise of two purposes never shares a number."""

    SAMPLE = 0
    TRAIN_EPS = 1
    TRAIN_TIME = 2
    FLIP = 3
    LABEL_DROP = 4
    VALIDATION_EPS = 5
    BOUND = 6
    FORWARD = 7
    ORDER = 8
    DROPOUT = 9
    INIT = 10
    PERTURBATION = 11
    SIGMA = 12


def philox(counter: Sequence[Word], key: tuple[int, int]) -> list[Word]:
    """Ten rounds of Philox4x32: four words of counter (int64 tensors holding 32 bits) to four of noise."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]  # wraps mod 2^64, which keeps every bit
        c0, c1 = ((p1 >> 32) & _WORD) ^ c1 ^ k0, p1 & _WORD
        c2, c3 = ((p0 >> 32) & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return [c0, c1, c2, c3]


def _words(seed: int, stream: Stream, image: Tensor, step: int | Tensor, count: int) -> Tensor:
    """`count` words for each image: int64 in [0, 2^32), shape (b, count)."""
    image = image.long().reshape(-1, 1)
    block = torch.arange(-(-count // 4), device=image.device).expand(len(image), -1)
    if isinstance(step, int):
        step = torch.full_like(image, step)
    step = step.to(image.device).long().reshape(-1, 1).expand_as(block)
    high = int(stream) + (image >> 32) * 256
    words = philox((block, (image & _WORD).expand_as(block), step, high.expand_as(block)), key(seed))
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def key(seed: int) -> tuple[int, int]:
    """The two words of a 64-bit seed."""
    return seed & _WORD, (seed >> 32) & _WORD


def uniform(seed: int, stream: Stream, image: Tensor, step: int | Tensor = 0) -> Tensor:
    """One number in (0, 1) for each of the images (b,): float64, shape (b,)."""
    return (_words(seed, stream, image, step, 1)[:, 0].double() + 0.5) / 2**32


def normal(seed: int, stream: Stream, image: Tensor, step: int | Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise of the given shape for each of the images (b,), at a step (one for all or
    one for each): float32, shape (b, *shape), by the transform of Box and Muller (1958)."""
    count = math.prod(shape)
    words = _words(seed, stream, image, step, count + count % 2).reshape(len(image), -1, 2)
    pairs = (words.float() + 0.5) / 2**32
    radius, angle = (-2 * pairs[..., 0].log()).sqrt(), 2 * math.pi * pairs[..., 1]
    values = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=-1)
    return values.flatten(1)[:, :count].reshape(-1, *shape)


def scalar(seed: int, stream: Stream, step: int = 0, rank: int = 0) -> int:
    """63 bits that are a function of their address, to seed somebody else's generator with."""
    low, high, _, _ = philox((0, rank, step, int(stream)), key(seed))
    return (high >> 1) << 32 | low


def generator(seed: int, stream: Stream, step: int = 0) -> torch.Generator:
    """A CPU generator that is a function of its address, for the few things that want one."""
    return torch.Generator().manual_seed(scalar(seed, stream, step))
