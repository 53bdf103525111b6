"""The guard where activations are collected."""

import pytest
import torch

from cdbench import discover
from cdbench.data import make_splits
from cdbench.errors import UserError
from cdbench.signals import require_samples
from cdbench.similarity import sample_rows
from cdbench.similarity.rows import require_distinct
from cdbench.tokens import Encoded, encode
from conftest import World


def batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    hidden = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1], [0, 0, 1, 1, 1]])
    return hidden, mask, torch.tensor([2, 3, 4, 4])


def test_one_row_a_prompt_at_its_own_position() -> None:
    hidden, mask, positions = batch()
    hidden.requires_grad_()
    rows = sample_rows(hidden, mask, positions)
    assert torch.equal(rows, torch.stack([hidden[0, 2], hidden[1, 3], hidden[2, 4], hidden[3, 4]]))
    rows.sum().backward()
    assert int((hidden.grad != 0).sum()) == 4 * 3


def test_padding_on_either_side_is_refused() -> None:
    hidden, mask, positions = batch()
    with pytest.raises(ValueError, match="prompt 0 is read at position 3, which is padding"):
        sample_rows(hidden, mask, torch.tensor([3, 3, 4, 4]))
    with pytest.raises(ValueError, match="prompt 3 is read at position 0, which is padding"):
        sample_rows(hidden, mask, torch.tensor([2, 3, 4, 0]))
    with pytest.raises(ValueError, match="prompt 1 is read at position 5, outside its 5"):
        sample_rows(hidden, mask, torch.tensor([2, 5, 4, 4]))
    with pytest.raises(ValueError, match="outside"):
        sample_rows(hidden, mask, positions - 4)


def test_repeated_rows_are_refused() -> None:
    hidden, mask, positions = batch()
    hidden[2, 4] = hidden[1, 3]
    with pytest.raises(ValueError, match="rows 1 and 2 of hidden are the same: .*stands twice"):
        sample_rows(hidden, mask, positions)
    hidden[2, 4] *= 1 + 1e-6  # what another batch size does to the same prompt
    with pytest.raises(ValueError, match="rows 1 and 2 of hidden are the same"):
        sample_rows(hidden, mask, positions)


def test_shapes_are_checked() -> None:
    hidden, mask, positions = batch()
    with pytest.raises(ValueError, match=r"hidden must be .*got shape \(4, 15\)"):
        sample_rows(hidden.flatten(1), mask, positions)
    with pytest.raises(ValueError, match="mask must be"):
        sample_rows(hidden, mask[:, :4], positions)
    for wrong in (positions.float(), positions.to(torch.uint8), positions > 2, [2, 3, 4, 4], positions[:3]):
        with pytest.raises(ValueError, match="positions must be an integer tensor"):
            sample_rows(hidden, mask, wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of zeros and ones"):
        sample_rows(hidden, (1 - mask) * -1e9, positions)
    with pytest.raises(ValueError, match="NaN or infinity"):
        sample_rows(hidden * float("nan"), mask, positions)


def test_the_evaluator_reads_no_prompt_twice_and_no_padding(world: World) -> None:
    splits = make_splits(discover.make_task("addition_2digit"), "addition_2digit", world.profile.data)
    split = encode(world.workspace().tokenizer, splits.test)
    require_samples(split, "the held-out split")
    twice = split.select(torch.tensor([0, 1, 2, 1]))
    with pytest.raises(UserError, match="problems 1 and 3 of the held-out split have the same prompt"):
        require_samples(twice, "the held-out split")
    late = Encoded(split.ids, split.last_prompt + 1, split.answer_positions, split.answer_tokens)
    with pytest.raises(UserError, match="problem 0 of the held-out split .* not its last prompt token"):
        require_samples(late, "the held-out split")


def test_copies_are_found_where_most_rows_are_copies() -> None:
    draw = torch.Generator().manual_seed(0)
    for copies in (2, 24, 30):
        rows = torch.randn(32, 16, generator=draw)
        rows[:copies] = rows[0] + 1e-7 * torch.randn(copies, 16, generator=draw)
        with pytest.raises(ValueError, match="are the same"):
            require_distinct(rows, "hidden")
    pair = torch.randn(1, 16, generator=draw).repeat(2, 1) + 1e-7 * torch.randn(2, 16, generator=draw)
    with pytest.raises(ValueError, match="rows . and . of hidden are the same"):
        require_distinct(pair, "hidden")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_copies_in_half_precision_are_found_and_what_differs_is_kept(dtype: torch.dtype) -> None:
    rows = torch.randn(32, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float32).to(dtype)
    require_distinct(rows, "hidden")
    copied = rows.clone()
    copied[5] = copied[4]
    copied[5, 7] = torch.nextafter(copied[4, 7], torch.tensor(9.0, dtype=dtype))  # another batch, another last digit
    with pytest.raises(ValueError, match="rows 4 and 5 of hidden are the same"):
        require_distinct(copied, "hidden")
    # Of prompts that are close, many digits differ, and some by several steps.
    near = rows.clone()
    near[5] = (near[4].double() * (1 + 2.1 * torch.finfo(dtype).eps)).to(dtype)
    require_distinct(near, "hidden")
    dense = torch.randn(500, 2, generator=torch.Generator().manual_seed(1)) @ torch.randn(2, 256)
    require_distinct(dense.to(dtype), "hidden")


def test_what_is_no_tensor_is_told() -> None:
    with pytest.raises(ValueError, match="mask must be a torch tensor, got list"):
        sample_rows(torch.randn(2, 3, 4), [[1, 1, 1]] * 2, torch.tensor([0, 1]))  # type: ignore[arg-type]
