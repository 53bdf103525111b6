import math

import pytest
import torch
import torch.nn.functional as F

from cdbench.api import Signal
from cdbench.objectives.cka_alignment import CkaAlignment, cka_alignment
from cdbench.objectives.cross_entropy import cross_entropy
from cdbench.objectives.kl import Kl, kl
from cdbench.similarity import linear_cka
from cdbench.tokens import Encoded
from cdbench.train import _StepInputs


def test_cross_entropy_counts_answer_tokens_only() -> None:
    # Two problems, two answer positions, the second of the first problem is filler.
    logits = torch.tensor([[[0.0, 0.0], [9.0, -9.0]], [[0.0, math.log(3)], [0.0, 0.0]]])
    tokens = torch.tensor([[0, -100], [1, 0]])
    # −ln ½, −ln ¾, −ln ½ over three tokens.
    assert cross_entropy(logits, tokens).item() == pytest.approx((2 * math.log(2) - math.log(0.75)) / 3)


def test_kl_by_hand_has_t_squared_and_the_teacher_first() -> None:
    teacher, student = torch.tensor([[[0.0, 2 * math.log(3)]]]), torch.zeros(1, 1, 2)
    # At T = 2 the teacher says (1/4, 3/4), the student (1/2, 1/2).
    want = 4 * (0.25 * math.log(0.5) + 0.75 * math.log(1.5))
    assert kl(teacher, student, torch.zeros(1, 1, dtype=torch.long), 2.0).item() == pytest.approx(want)


def test_kl_ignores_filler_and_is_zero_at_the_teacher() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[1, 2, -100, -100]] * 3)
    noisy = logits.clone()
    noisy[:, 2:] += 100
    assert kl(logits, noisy, tokens, 2.0).item() == pytest.approx(0, abs=1e-6)


def test_kl_agrees_with_the_textbook_formula() -> None:
    g = torch.Generator().manual_seed(1)
    teacher, student = torch.randn(2, 3, 7, generator=g), torch.randn(2, 3, 7, generator=g)
    tokens = torch.zeros(2, 3, dtype=torch.long)
    p, q = F.softmax(teacher / 3, -1), F.softmax(student / 3, -1)
    torch.testing.assert_close(kl(teacher, student, tokens, 3.0), 9 * (p * (p / q).log()).sum(-1).mean())


def test_the_papers_printed_direction_of_kl_is_an_option_and_another_number() -> None:
    g = torch.Generator().manual_seed(3)
    student, teacher = torch.randn(2, 1, 5, generator=g), torch.randn(2, 1, 5, generator=g)

    tokens = torch.zeros(2, 1, dtype=torch.long)
    batch = Encoded(ids=tokens, last_prompt=tokens[:, 0], answer_positions=tokens, answer_tokens=tokens)
    inputs = _StepInputs(batch, torch.arange(2), student, {}, {Signal("logits"): teacher})
    first, printed = (Kl(2.0, direction).loss(inputs) for direction in ("teacher_first", "as_printed"))  # type: ignore[arg-type]
    torch.testing.assert_close(first, kl(teacher, student, tokens, 2.0))
    torch.testing.assert_close(printed, kl(student, teacher, tokens, 2.0))
    assert first != printed


def test_alignment_sums_as_printed_or_averages() -> None:
    g = torch.Generator().manual_seed(2)
    pairs = [(torch.randn(16, 4, generator=g), torch.randn(16, 6, generator=g)) for _ in range(3)]
    each = [1 - linear_cka(x, y) for x, y in pairs]
    torch.testing.assert_close(cka_alignment(pairs, debiased=False, reduction="sum"), torch.stack(each).sum())
    torch.testing.assert_close(cka_alignment(pairs, debiased=False, reduction="mean"), torch.stack(each).mean())


def test_alignment_names_the_sites_it_reads() -> None:
    term = CkaAlignment(((0, 3), (2, 1)))
    assert term.student_sites == ("mlp.0.out", "mlp.2.out")
    assert [s.site for s in term.signals] == ["mlp.3.out", "mlp.1.out"]
    assert {s.position for s in term.signals} == {"last_prompt"}
