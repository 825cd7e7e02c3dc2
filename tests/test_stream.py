"""The stream of training images: permutations, and the same global batches however they are shared out."""

from itertools import islice

import pytest
import torch
from torch import Tensor

from ddpm.data.stream import Permuted, TrainBatches, index_batches, permutation, ranges, split_indices
from ddpm.errors import Refused

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 3), (3, 2), (6, 1), (1, 12), (4, 3)]


def micro_batches(rank: int, world_size: int, accumulation: int, step: int, count: int) -> list[Tensor]:
    batches = TrainBatches(
        global_batch=12, first_step=lambda: step, rank=rank, world_size=world_size, accumulation=accumulation
    )
    return list(islice(batches, count))


@pytest.mark.parametrize("data_pass", range(4))
@pytest.mark.parametrize("num_images", [1, 2, 7, 1000])
def test_each_pass_is_a_permutation(data_pass: int, num_images: int) -> None:
    numbers = torch.arange(data_pass * num_images, (data_pass + 1) * num_images)
    indices = Permuted(num_images, seed=3)(numbers)
    assert torch.equal(indices.sort().values, torch.arange(num_images))


def test_passes_and_seeds_differ() -> None:
    orders = [permutation(seed, data_pass, 100) for seed in (0, 1) for data_pass in (0, 1, 2)]
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)


def test_an_index_is_a_function_of_its_number_alone() -> None:
    order, numbers = Permuted(7, seed=0), torch.randperm(50, generator=torch.Generator().manual_seed(0))
    together = order(numbers)
    one_by_one = torch.cat([order(number.reshape(1)) for number in numbers])
    assert torch.equal(together, one_by_one)


def test_a_far_step_needs_no_memory_of_the_way_there() -> None:
    numbers = 10**12 + torch.arange(5)
    assert torch.equal(Permuted(10**4, seed=0)(numbers), Permuted(10**4, seed=0)(numbers.clone()))


@pytest.mark.parametrize(("world_size", "accumulation"), LAYOUTS)
def test_every_layout_makes_the_same_global_batches(world_size: int, accumulation: int) -> None:
    steps = 3
    seen = [micro_batches(r, world_size, accumulation, 0, steps * accumulation) for r in range(world_size)]
    for step in range(steps):
        shares = [rank[step * accumulation + a] for a in range(accumulation) for rank in seen]
        assert torch.equal(torch.cat(shares), torch.arange(step * 12, (step + 1) * 12))


@pytest.mark.parametrize(("world_size", "accumulation"), LAYOUTS)
def test_beginning_at_a_step_is_skipping_to_it(world_size: int, accumulation: int) -> None:
    for rank in range(world_size):
        whole = micro_batches(rank, world_size, accumulation, 0, 5 * accumulation)
        rest = micro_batches(rank, world_size, accumulation, 2, 3 * accumulation)
        assert torch.equal(torch.stack(whole[2 * accumulation :]), torch.stack(rest))


def test_iteration_begins_where_training_is_by_then() -> None:
    step = 0
    batches = TrainBatches(global_batch=4, first_step=lambda: step, rank=0, world_size=1, accumulation=1)
    assert next(iter(batches)).tolist() == [0, 1, 2, 3]
    step = 5
    assert next(iter(batches)).tolist() == [20, 21, 22, 23]


def test_the_stream_has_no_length() -> None:
    batches = TrainBatches(global_batch=4, first_step=lambda: 0, rank=0, world_size=1, accumulation=1)
    assert not hasattr(batches, "__len__")


@pytest.mark.parametrize(("world_size", "accumulation"), [(5, 1), (1, 8), (4, 2), (13, 1)])
def test_a_batch_that_can_not_be_shared_out_is_refused(world_size: int, accumulation: int) -> None:
    with pytest.raises(Refused, match=f"choose a multiple of {world_size * accumulation}"):
        micro_batches(0, world_size, accumulation, 0, 1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("at_most", [1, 2, 5, 100])
@pytest.mark.parametrize("num_images", [7, 8, 23, 100])
def test_ranges_cover_all_once_and_evenly(num_images: int, at_most: int, world_size: int) -> None:
    shares = [ranges(num_images, at_most, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    dealt = [batch for round_ in zip(*shares, strict=True) for batch in round_]
    assert torch.equal(torch.cat(dealt), torch.arange(num_images))
    sizes = [len(batch) for batch in dealt]
    assert min(sizes) >= 1
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(at_most, 2)  # single images cannot always be dealt evenly


def test_fewer_images_than_ranks_are_refused() -> None:
    with pytest.raises(Refused, match="3 test images are too few for 4 ranks"):
        ranges(3, 10, 0, 4)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
@pytest.mark.parametrize("num_images", [1, 2, 7, 64])
def test_batches_of_indices_are_the_same_ranges_whatever_ranks_make_them(
    num_images: int, batch_size: int, world_size: int
) -> None:
    """No image twice, none lost: range k, which begins at k batch_size, is that of rank k mod world_size."""
    dealt: dict[int, list[int]] = {}
    for rank in range(world_size):
        for turn, batch in enumerate(index_batches(num_images, batch_size, rank, world_size)):
            dealt[turn * world_size + rank] = batch.tolist()
    assert sorted(dealt) == list(range(len(dealt)))
    assert [index for k in sorted(dealt) for index in dealt[k]] == list(range(num_images))
    assert all(dealt[k][0] == k * batch_size and 0 < len(dealt[k]) <= batch_size for k in dealt)


def test_the_split_is_fixed_disjoint_and_ascending() -> None:
    train, test = split_indices(100, 30)
    assert (len(train), len(test)) == (70, 30)
    assert torch.equal(torch.cat((train, test)).sort().values, torch.arange(100))
    assert torch.equal(test, test.sort().values)
    assert test[:6].tolist() == split_indices(100, 30)[1][:6].tolist()
