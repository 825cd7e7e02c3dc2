import pytest
import torch
from scipy import stats

from ddpm.noise import Stream, generator, normal, philox, scalar, uniform


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [  # the known answers of Salmon et al. (2011), Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers(counter, key, words):
    assert tuple(philox(counter, key)) == words
    assert tuple(w.item() for w in philox([torch.tensor([c]) for c in counter], key)) == words


def test_noise_is_a_function_of_its_address_alone():
    together = normal(3, Stream.SAMPLE, torch.arange(7), 5, (2, 3, 3))
    alone = torch.cat([normal(3, Stream.SAMPLE, torch.tensor([i]), 5, (2, 3, 3)) for i in range(7)])
    steps = normal(3, Stream.SAMPLE, torch.full((3,), 4), torch.tensor([4, 5, 6]), (2, 3, 3))
    assert torch.equal(together, alone)
    assert torch.equal(steps[1], together[4])


def test_no_two_addresses_share_noise():
    image = torch.tensor([0, 1, 2**32, 2**32 + 1])
    draws = [normal(seed, stream, image, step, (4,)) for seed in (0, 1, 2**32) for stream in Stream for step in (0, 1)]
    rows = torch.cat(draws)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_normal_is_normal_and_uniform_is_uniform():
    x = normal(0, Stream.TRAIN_EPS, torch.arange(2000), 0, (5, 5)).flatten().numpy()
    u = uniform(0, Stream.TRAIN_TIME, torch.arange(50_000)).numpy()
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(stats.kurtosis(x)) < 0.1
    assert abs((x[:-1] * x[1:]).mean()) < 0.02


def test_an_odd_number_of_elements_is_the_head_of_an_even_one():
    image = torch.arange(3)
    assert torch.equal(normal(0, Stream.FLIP, image, 0, (5,)), normal(0, Stream.FLIP, image, 0, (6,))[:, :5])


def test_generators_are_functions_of_their_address():
    draw = [torch.rand(4, generator=generator(1, Stream.ORDER, step)) for step in (2, 2, 3)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert 0 <= scalar(2**63, Stream.DROPOUT, 10**9, 7) < 2**63
