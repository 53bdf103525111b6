"""Streaming: exact whatever the batches, in constant memory, mergeable, saved and loaded."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from cdbench.similarity import MinibatchCKA, StreamingCKA, cka_matrices, linear_cka
from cdbench.similarity.hsic import u_centred


def data(n: int, seed: int = 0, offset: float = 0.0) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    draw = torch.Generator().manual_seed(seed)

    def layer(d: int) -> torch.Tensor:
        values = torch.randn(n, d, generator=draw, dtype=torch.float64)
        return values + offset * torch.randn(d, generator=draw, dtype=torch.float64)

    xs = [layer(3), layer(7)]
    return xs, [layer(5), xs[1] @ torch.randn(7, 4, generator=draw, dtype=torch.float64), layer(2)]


def fed(xs: list[torch.Tensor], ys: list[torch.Tensor], edges: list[int]) -> StreamingCKA:
    stream = StreamingCKA()
    for a, b in pairwise(edges):
        stream.update([x[a:b] for x in xs], [y[a:b] for y in ys])
    return stream


def expected(xs: list[torch.Tensor], ys: list[torch.Tensor], debiased: bool) -> torch.Tensor:
    return torch.tensor([[linear_cka(x, y, debiased=debiased) for y in ys] for x in xs], dtype=torch.float64)


@given(st.integers(5, 60), st.sets(st.integers(1, 59), max_size=8), st.integers(0, 99), st.sampled_from([0.0, 50.0]))
def test_any_batch_boundaries_give_the_one_shot_value(n: int, cuts: set[int], seed: int, offset: float) -> None:
    xs, ys = data(n, seed, offset)
    stream = fed(xs, ys, sorted({0, n} | {cut for cut in cuts if cut < n}))
    assert stream.n == n
    for debiased in (False, True):
        torch.testing.assert_close(stream.compute(debiased=debiased), expected(xs, ys, debiased), atol=1e-7, rtol=0)


@given(st.integers(10, 50), st.integers(1, 9), st.booleans())
def test_workers_that_merge_have_seen_everything(n: int, cut: int, one_is_far: bool) -> None:
    xs, ys = data(n, 1)
    if one_is_far:  # the second worker's samples lie elsewhere, and are larger
        xs = [torch.cat([x[:cut], 1000 + 300 * x[cut:]]) for x in xs]
    one, two = (StreamingCKA() for _ in range(2))
    one.update([x[:cut] for x in xs], [y[:cut] for y in ys])
    two.update([x[cut:] for x in xs], [y[cut:] for y in ys])
    before = two.state_dict()
    one.merge(two)
    for debiased in (False, True):
        torch.testing.assert_close(one.compute(debiased=debiased), expected(xs, ys, debiased), atol=1e-6, rtol=0)
    assert all(torch.equal(before[key], value) for key, value in two.state_dict().items())


def test_merging_with_nothing_changes_nothing() -> None:
    xs, ys = data(20)
    stream, empty = fed(xs, ys, [0, 20]), StreamingCKA()
    value = stream.compute()
    stream.merge(empty)
    assert torch.equal(stream.compute(), value)
    empty.merge(stream)
    assert torch.equal(empty.compute(), value) and empty.n == 20


def test_a_later_batch_may_be_larger_by_any_factor() -> None:
    xs, ys = data(30, 2)
    for power in (80, 400):
        moved = [torch.cat([x[:10], x[10:] * 2.0**power]) for x in xs]
        got = fed(moved, ys, [0, 10, 30]).compute()
        scaled = [x * 2.0**-power for x in moved]
        torch.testing.assert_close(got, expected(scaled, ys, False), atol=1e-9, rtol=0)


def test_the_state_does_not_grow_and_goes_through_a_file(tmp_path: Path) -> None:
    xs, ys = data(600, 3)

    def size(stream: StreamingCKA) -> int:
        return sum(value.numel() * value.element_size() for value in stream.state_dict().values())

    stream = fed(xs, ys, [0, 10])
    small = size(stream)
    for a in range(10, 300, 10):
        stream.update([x[a : a + 10] for x in xs], [y[a : a + 10] for y in ys])
    assert size(stream) == small
    save_file(stream.state_dict(), tmp_path / "stream.safetensors")
    other = StreamingCKA()
    other.load_state_dict(load_file(tmp_path / "stream.safetensors"))
    for s in (stream, other):
        s.update([x[300:] for x in xs], [y[300:] for y in ys])
    assert torch.equal(other.compute(debiased=True), stream.compute(debiased=True))
    torch.testing.assert_close(other.compute(debiased=True), expected(xs, ys, True), atol=1e-9, rtol=0)


def test_many_layers_keep_their_places_in_whatever_order_a_file_has_them(tmp_path: Path) -> None:
    """safetensors hands out xs[10] before xs[1]."""
    draw = torch.Generator().manual_seed(0)
    xs, ys = ([torch.randn(40, 3, generator=draw, dtype=torch.float64) for _ in range(12)] for _ in range(2))
    xs = [x + 0.3 * i * ys[i] for i, x in enumerate(xs)]
    stream = fed(xs, ys, [0, 15, 40])
    save_file(stream.state_dict(), tmp_path / "stream.safetensors")
    backwards = dict(reversed(stream.state_dict().items()))
    for state in (load_file(tmp_path / "stream.safetensors"), backwards):
        other, merged = StreamingCKA(), StreamingCKA()
        other.load_state_dict(state)
        merged.merge(other)
        for found in (other, merged):
            assert torch.equal(found.compute(debiased=True), stream.compute(debiased=True))
    torch.testing.assert_close(stream.compute(), expected(xs, ys, False), atol=1e-9, rtol=0)
    missing = {name: value for name, value in stream.state_dict().items() if "xs[3]" not in name}
    with pytest.raises(ValueError, match="the layers of xs are not numbered from 0 on"):
        StreamingCKA().load_state_dict(missing)


@pytest.mark.parametrize("exponent", [5, 20, 60, 100, 160, 300])
@pytest.mark.parametrize("debiased", [False, True])
def test_beside_a_huge_feature_that_does_not_vary_it_is_right_or_refuses(exponent: int, debiased: bool) -> None:
    """It must form products before it can know what varies: it says so where that costs digits."""
    draw = torch.Generator().manual_seed(1)
    x, y = (torch.randn(40, 3, generator=draw, dtype=torch.float64) for _ in range(2))
    huge = torch.cat([torch.full((40, 1), 10.0**exponent, dtype=torch.float64), x], dim=1)
    stream = fed([huge], [y], [0, 7, 19, 40])
    try:
        found = stream.compute(debiased=debiased)[0, 0].item()
    except ValueError as error:
        assert exponent > 5 and ("vanish beside them: leave them out" in str(error) or "is constant" in str(error))
    else:
        assert found == pytest.approx(expected([x], [y], debiased).item(), abs=1e-6)


def test_a_batch_that_raises_adds_nothing() -> None:
    xs, ys = data(20)
    stream = fed(xs, ys, [0, 12])
    bad = [xs[0][12:], xs[1][12:].clone()]
    bad[1][2, 3] = float("nan")
    with pytest.raises(ValueError, match=r"xs\[1\] .* NaN"):
        stream.update(bad, [y[12:] for y in ys])
    with pytest.raises(ValueError, match="those of the first batch"):
        stream.update([x[12:] for x in xs], [y[12:] for y in ys[:2]])
    with pytest.raises(ValueError, match=r"ys\[0\].*must hold the same samples"):
        stream.update([x[12:] for x in xs], [y[11:] for y in ys])
    stream.update([x[12:] for x in xs], [y[12:] for y in ys])
    torch.testing.assert_close(stream.compute(), expected(xs, ys, False), atol=1e-9, rtol=0)


def test_what_cannot_be_computed_is_said() -> None:
    xs, ys = data(20)
    with pytest.raises(ValueError, match="at least 3 samples: what was seen so far has 0"):
        StreamingCKA().compute()
    with pytest.raises(ValueError, match="at least 4 samples: .* has 3"):
        fed(xs, ys, [0, 3]).compute(debiased=True)
    with pytest.raises(ValueError, match=r"GiB, more than max_bytes"):
        StreamingCKA(max_bytes=1000).update(xs, ys)
    with pytest.raises(ValueError, match=r"xs\[0\] of shape \(20, 3\) is constant"):
        fed([torch.full((20, 3), 0.1, dtype=torch.float64), xs[1]], ys, [0, 7, 20]).compute()
    with pytest.raises(ValueError, match=r"ys\[0\].*no debiased CKA"):
        fed(xs, [torch.eye(20, dtype=torch.float64)], [0, 7, 20]).compute(debiased=True)
    with pytest.raises(ValueError, match="not the state of a StreamingCKA"):
        StreamingCKA().load_state_dict({"centre xs[0]": torch.zeros(3)})
    with pytest.raises(ValueError, match="those of the first batch"):
        fed(xs, ys, [0, 20]).merge(fed(ys, xs, [0, 20]))


def test_a_batch_of_zeros_has_no_scale() -> None:
    x, y = torch.randn(12, 3, dtype=torch.float64), torch.randn(12, 2, dtype=torch.float64)
    tiny = x * 2.0**-300
    for rows in (slice(4, 8), slice(0, 4)):
        tiny[rows] = 0
    want = linear_cka(tiny * 2.0**300, y).item()
    one = fed([tiny], [y], [0, 4, 8, 12])
    assert one.compute()[0, 0].item() == pytest.approx(want, abs=1e-12)
    back = fed([tiny.flip(0)], [y.flip(0)], [0, 4, 8, 12])
    assert back.compute()[0, 0].item() == pytest.approx(want, abs=1e-12)
    zeros, rest = fed([tiny[:8]], [y[:8]], [0, 8]), fed([tiny[8:]], [y[8:]], [0, 4])
    for a, b in ((zeros, rest), (rest, zeros)):
        merged = StreamingCKA()
        merged.merge(a)
        merged.merge(b)
        assert merged.compute()[0, 0].item() == pytest.approx(want, abs=1e-12)


def test_the_state_outlives_an_inference_mode() -> None:
    xs, ys = data(20)
    stream = StreamingCKA()
    with torch.inference_mode():
        stream.update([x[:9] for x in xs], [y[:9] for y in ys])
    stream.update([x[9:] for x in xs], [y[9:] for y in ys])
    torch.testing.assert_close(stream.compute(), expected(xs, ys, False), atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "spoil",
    [
        {"n": torch.tensor(7)},
        {"n": torch.tensor(-1)},
        {"moment xs[0] ys[1]": torch.zeros(2, 2)},
        {"centre xs[0]": torch.full((3,), float("nan"))},
        {"exponent xs[0]": torch.tensor(2000)},
        {"exponent ys[1]": torch.tensor(-5000)},
    ],
)
def test_a_damaged_state_is_refused(spoil: dict[str, torch.Tensor]) -> None:
    xs, ys = data(20)
    state = fed(xs, ys, [0, 20]).state_dict() | spoil
    with pytest.raises(ValueError, match="not the state of a StreamingCKA"):
        StreamingCKA().load_state_dict(state)
    with pytest.raises(ValueError, match="not the state of a StreamingCKA"):
        StreamingCKA().load_state_dict({"n": torch.tensor(50)})


@pytest.mark.parametrize("name", ["xs[0]", "ys[1]"])
def test_a_state_that_has_lost_an_exponent_is_refused(name: str) -> None:
    state = fed(*data(20), [0, 20]).state_dict()
    del state[f"exponent {name}"]
    with pytest.raises(ValueError, match=rf"exponent of {name[:2]}\[.\] is missing"):
        StreamingCKA().load_state_dict(state)


def test_minibatches_of_very_different_scales_do_not_overflow() -> None:
    xs, ys = data(24, 9)
    for one, two in ((-300, 0), (-600, 600), (0, 400), (200, -200)):
        moved = [torch.cat([x[:12] * 2.0**one, x[12:] * 2.0**two]) for x in xs]
        got = minibatches(moved, ys, [0, 12, 24]).compute()
        assert torch.isfinite(got).all() and (got.abs() <= 1 + 1e-9).all()


def minibatches(xs: list[torch.Tensor], ys: list[torch.Tensor], edges: list[int]) -> MinibatchCKA:
    stream = MinibatchCKA()
    for a, b in pairwise(edges):
        stream.update([x[a:b] for x in xs], [y[a:b] for y in ys])
    return stream


def test_minibatch_cka_is_that_of_the_published_formula() -> None:
    # ckatorch's cka_batch is Nguyen et al.'s formula for equal batches, written by others.
    from ckatorch import cka_batch

    xs, ys = data(40, 5)
    got = minibatches(xs, ys, [0, 10, 20, 30, 40]).compute()
    for i, x in enumerate(xs):
        for j, y in enumerate(ys):
            want = cka_batch(x.view(4, 10, -1), y.view(4, 10, -1))
            assert got[i, j].item() == pytest.approx(want.item(), abs=1e-10)


def test_one_minibatch_is_the_debiased_cka_and_merging_is_feeding_both() -> None:
    xs, ys = data(24, 6)
    torch.testing.assert_close(
        minibatches(xs, ys, [0, 24]).compute(), cka_matrices(xs, ys).debiased, atol=1e-10, rtol=0
    )
    one, two = (minibatches([x[s] for x in xs], [y[s] for y in ys], [0, 12]) for s in (slice(0, 12), slice(12, 24)))
    one.merge(two)
    torch.testing.assert_close(one.compute(), minibatches(xs, ys, [0, 12, 24]).compute(), atol=1e-12, rtol=0)
    assert one.n == 24


def test_minibatches_of_independent_features_average_to_zero_where_each_would_say_one() -> None:
    draw = torch.Generator().manual_seed(0)
    stream = MinibatchCKA()
    for _ in range(40):
        stream.update([torch.randn(16, 256, generator=draw)], [torch.randn(16, 256, generator=draw)])
    assert abs(stream.compute().item()) < 0.03
    assert linear_cka(torch.randn(16, 256, generator=draw), torch.randn(16, 256, generator=draw)).item() > 0.9


def test_minibatches_of_any_scale_weigh_by_their_own() -> None:
    xs, ys = data(24, 7)
    halves = [torch.cat([x[:12], x[12:] * 4]) for x in xs]
    want = minibatches(halves, ys, [0, 12, 24]).compute()
    huge = [x * 2.0**200 for x in halves]
    torch.testing.assert_close(minibatches(huge, ys, [0, 12, 24]).compute(), want, atol=1e-10, rtol=0)


def test_a_wrong_minibatch_is_refused() -> None:
    xs, ys = data(24, 8)
    stream = minibatches(xs, ys, [0, 12])
    with pytest.raises(ValueError, match="at least 4 samples: .* has 3"):
        stream.update([x[:3] for x in xs], [y[:3] for y in ys])
    with pytest.raises(ValueError, match="those of the first batch"):
        stream.update(xs, ys[:1])
    with pytest.raises(ValueError, match="those of the first batch"):
        stream.update(xs, [ys[1], ys[0], ys[2]])
    with pytest.raises(ValueError, match="those of the first batch"):
        stream.merge(minibatches(ys, xs, [0, 24]))
    with pytest.raises(ValueError, match="seen so far has 0"):
        MinibatchCKA().compute()


@pytest.mark.parametrize("seed", range(5))
def test_a_first_sample_far_from_the_rest_costs_no_digits(seed: int) -> None:
    """Row by row the first sample is all there is to centre at; by whole batches it is one of 300."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 20, generator=draw, dtype=torch.float64)
    y = x + torch.randn(300, 20, generator=draw, dtype=torch.float64)
    x[0] *= 1e5
    y[0] *= 1e5
    stream = StreamingCKA()
    for i in range(len(x)):
        stream.update([x[i : i + 1]], [y[i : i + 1]])
    # By hand, with the diagonal of the Grams, where the far sample's square stands, taken out before anything is summed.
    one, two = (u_centred((v - v[1:].mean(0)) @ (v - v[1:].mean(0)).T) for v in (x, y))
    value = (one * two).sum() / (one.norm() * two.norm())
    assert stream.compute(debiased=True).item() == pytest.approx(value.item(), abs=1e-5)


def test_minibatches_that_say_nothing_are_refused() -> None:
    """Rows of an orthogonal matrix are all equally far apart: what is left of their HSIC is rounding, of either sign."""
    for seed in range(8):
        draw = torch.Generator().manual_seed(seed)
        square = torch.linalg.qr(torch.randn(6, 6, generator=draw, dtype=torch.float64))[0]
        stream = MinibatchCKA()
        stream.update([square], [torch.randn(6, 5, generator=draw, dtype=torch.float64)])
        with pytest.raises(ValueError, match=r"xs\[0\] of shape \(6, 6\) has no debiased CKA"):
            stream.compute()


def test_only_its_own_kind_is_merged_into_minibatches() -> None:
    with pytest.raises(ValueError, match="only a MinibatchCKA can be merged into one, got StreamingCKA"):
        MinibatchCKA().merge(StreamingCKA())  # type: ignore[arg-type]


def test_only_its_own_kind_is_merged_into_a_stream() -> None:
    with pytest.raises(ValueError, match="only a StreamingCKA can be merged into one, got NoneType"):
        StreamingCKA().merge(None)  # type: ignore[arg-type]
