import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from cdbench.api import Example
from cdbench.circuits import masks as m
from cdbench.circuits.ablation import ablated_accuracy, ablation_impacts, mean_activations, normalise
from cdbench.circuits.pairing import pair_layers
from cdbench.seeds import generator_for
from cdbench.sites import captured
from cdbench.tokens import encode
from cdbench.zoo import exact_match, fresh, make_tokenizer
from circuit_models import half_right

PROMPTS = tuple(Example(f"{a}+{b}=", str(a + b), (a, b)) for a, b in [(1, 2), (30, 4), (55, 66), (7, 80)])


def llama():  # type: ignore[no-untyped-def]
    config = LlamaConfig(
        vocab_size=17, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64,
    )  # fmt: skip
    return fresh(config, generator_for("test")).eval()


def test_the_pooled_mean_is_the_mean_over_problems_of_the_mean_over_prompt_tokens() -> None:
    model, split = llama(), encode(make_tokenizer(), PROMPTS)
    by_hand = []
    for example in PROMPTS:
        ids = torch.tensor([make_tokenizer()(example.prompt)["input_ids"]])
        with torch.no_grad(), captured(model, ["mlp.1.out"]) as found:
            model.model(input_ids=ids)
        by_hand.append(found["mlp.1.out"][0].mean(0))
    torch.testing.assert_close(mean_activations(model, split, "pooled")[1], torch.stack(by_hand).mean(0))


def test_the_per_position_mean_leaves_out_problems_that_are_shorter() -> None:
    model, split = llama(), encode(make_tokenizer(), PROMPTS)
    means = mean_activations(model, split, "per_position")[0]
    assert len(means) == 6  # the longest prompt, 55+66=, has six tokens, and only it reaches the last position
    ids = torch.tensor([make_tokenizer()("55+66=")["input_ids"]])
    with torch.no_grad(), captured(model, ["mlp.0.out"]) as found:
        model.model(input_ids=ids)
    torch.testing.assert_close(means[5], found["mlp.0.out"][0, 5])


def test_ablating_with_the_layers_own_constant_output_changes_nothing() -> None:
    model = llama()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.zero_()
    split = half_right(model, encode(make_tokenizer(), PROMPTS))
    before = exact_match(model, split).double().mean().item()
    assert 0 < before < 1
    assert ablated_accuracy(model, split, 1, torch.zeros(16)) == before
    baseline, impacts = ablation_impacts(model, split, "pooled")
    assert baseline == before
    assert impacts[1] == 0


def test_impacts_of_the_trained_pair_are_multiples_of_one_over_n(world) -> None:  # type: ignore[no-untyped-def]
    circuits = world.workspace().circuits
    for role in ("teacher", "student"):
        for impact in circuits[role]["impacts"]:
            assert abs(impact * circuits["n"] - round(impact * circuits["n"])) < 1e-9


def test_the_harness_makes_counterfactuals_of_the_training_split(world) -> None:  # type: ignore[no-untyped-def]
    workspace = world.workspace(build=False)  # made by the `circuits` step of the fixture
    rows = [json.loads(line) for line in (workspace.counterfactuals / "counterfactuals.jsonl").read_text().splitlines()]
    encode_length = [len(workspace.tokenizer(e.prompt)["input_ids"]) for e in workspace.train_examples]
    assert json.loads((workspace.counterfactuals / "missing.json").read_text())["of"] == len(rows) == 256
    for example, length, other in zip(workspace.train_examples, encode_length, rows, strict=True):
        if other is not None:
            assert len(workspace.tokenizer(other["prompt"])["input_ids"]) == length
            assert other["answer"] != example.answer


def test_pairing_by_hand() -> None:
    # Normalised: student 1, .5; teacher .25, 1, .5. Nearest: 1 -> 1, .5 -> .5.
    found = pair_layers([0.4, 0.2], [0.2, 0.8, 0.4], top_k=2)
    assert found.pairs == ((0, 1), (1, 2))
    assert found.ties == {}
    assert found.shared == ()


def test_ties_go_to_the_nearest_relative_depth_then_to_the_lower_index_and_are_reported() -> None:
    # Both teacher layers 0 and 3 have the top impact; student layer 1 of 2 ends at depth 1, as teacher layer 3 does.
    found = pair_layers([0.0, 0.5], [0.9, 0.0, 0.0, 0.9], top_k=1)
    assert found.pairs == ((1, 3),)
    assert found.ties == {1: (3, 0)}
    # Depths 1/2 against 1/4 and 3/4 of the teacher: the same distance, so the lower index.
    assert pair_layers([1.0, 0.0], [1.0, 0.0, 1.0, 0.0], top_k=1).pairs == ((0, 0),)


def test_shared_partners_are_reported_and_one_to_one_forbids_them() -> None:
    student, teacher = [1.0, 0.9, 0.8], [1.0, 0.0, 0.1]
    shared = pair_layers(student, teacher, top_k=3)
    assert [t for _, t in shared.pairs] == [0, 0, 0]
    assert shared.shared == (0,)
    single = pair_layers(student, teacher, top_k=3, how="one_to_one")
    assert sorted(t for _, t in single.pairs) == [0, 1, 2]


def test_impacts_that_are_all_zero_normalise_to_zero() -> None:
    assert normalise([0.0, 0.0]) == [0.0, 0.0]
    assert normalise([-0.4, 0.2]) == [-1.0, 0.5]


# Neuron masks: Appendix B of paper A, by hand and by naive loops.

MASKS = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])


def test_within_class_similarity_is_the_mean_pairwise_cosine_of_masked_activations() -> None:
    activations = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    classes = [0, 1, 0, 0, 1, 0]
    assignment = torch.nn.functional.one_hot(torch.tensor(classes), 2).float()
    want = []
    for k in (0, 1):
        rows = [activations[i] * MASKS[k] for i in range(6) if classes[i] == k]
        cosines = [
            torch.cosine_similarity(a, b, dim=0) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j
        ]
        want.append(torch.stack(cosines).mean())
    torch.testing.assert_close(m.within_class_similarity(activations, MASKS, assignment), -torch.stack(want).mean())


def test_a_class_of_one_is_skipped_and_as_printed_grows_with_scale() -> None:
    activations = torch.ones(3, 3)
    assignment = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert m.within_class_similarity(activations, MASKS, assignment).item() == pytest.approx(-1)
    alone = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    assert m.within_class_similarity(activations, MASKS, alone).item() == 0
    one = m.within_class_similarity(activations, MASKS, assignment, as_printed=True)
    ten = m.within_class_similarity(10 * activations, MASKS, assignment, as_printed=True)
    assert (ten / one).item() == pytest.approx(100)


def test_usage_entropy_is_greatest_when_classes_are_used_alike() -> None:
    even, one_class = torch.eye(4), torch.tensor([[1.0, 0, 0, 0]] * 4)
    assert m.class_usage_entropy(even).item() == pytest.approx(math.log(4))
    assert m.class_usage_entropy(one_class).item() == pytest.approx(0, abs=1e-6)


def test_sparsity_prior_and_overlap_by_hand() -> None:
    # Entropy: only the two entries of 1/2 among six count.
    assert m.mask_sparsity_loss(MASKS).item() == pytest.approx(2 * math.log(2) / 6, abs=1e-5)
    assert m.kl_to_prior(torch.full((2, 3), 0.1), 0.1).item() == pytest.approx(0, abs=1e-7)
    assert m.kl_to_prior(torch.full((2, 3), 0.5), 0.1).item() == pytest.approx(0.5 * math.log(25 / 9))
    # Cosine: 1/4 over 5/4; dot product: 1/4.
    assert m.mask_overlap_loss(MASKS).item() == pytest.approx(0.2)
    assert m.mask_overlap_loss(MASKS, as_printed=True).item() == pytest.approx(0.25)
    # Shrinking the masks lowers the dot product and not the cosine (errata B4).
    assert m.mask_overlap_loss(MASKS / 10).item() == pytest.approx(0.2)


def test_straight_through_is_one_hot_forward_and_soft_backward() -> None:
    logits = torch.zeros(200, 3, requires_grad=True)
    sample = m.straight_through_classes(logits, 0.5, torch.Generator().manual_seed(0))
    assert set(sample.detach().round(decimals=5).unique().tolist()) == {0.0, 1.0}
    assert sample.sum(1).detach().allclose(torch.ones(200))
    assert sample.detach().mean(0).allclose(torch.full((3,), 1 / 3), atol=0.12)
    sample[:, 0].sum().backward()
    assert logits.grad is not None and logits.grad.abs().sum() > 0


def train_assignment(*, as_printed: bool) -> float:
    """The usage term alone, on free logits: how evenly are the classes used in the end?"""
    generator = torch.Generator().manual_seed(0)
    logits = (0.3 * torch.randn(256, 4, generator=generator)).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(150):
        entropy = m.class_usage_entropy(m.straight_through_classes(logits, 0.5, generator))
        optimizer.zero_grad()
        (entropy if as_printed else -entropy).backward()
        optimizer.step()
    used = torch.bincount(logits.argmax(1), minlength=4) / 256
    return used.max().item()


def test_the_usage_term_as_printed_collapses_the_classes_and_ours_does_not() -> None:
    assert train_assignment(as_printed=True) > 0.95
    assert train_assignment(as_printed=False) < 0.4


def test_the_k_selection_curve_falls_and_reaches_zero_with_a_centre_for_each_row() -> None:
    rows = torch.randn(6, 4, generator=torch.Generator().manual_seed(3))
    curve = m.k_selection_curve(rows, 10, seed=0)
    assert len(curve) == 6
    assert curve == sorted(curve, reverse=True)
    assert curve[-1] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"encoder": "operands"},
        {"encoder": "activations"},
        {"neurons": "up"},
        {"usage_as_printed": True, "similarity_as_printed": True, "overlap_as_printed": True},
    ],
)
def test_every_reading_of_method_b_runs_and_gives_other_masks(world, options: dict[str, object], tmp_path) -> None:  # type: ignore[no-untyped-def]
    masks = []
    for chosen in ({}, options):
        spec = world.spec("mask_discovery", steps=20, **chosen)
        code, folder = world.step("train", spec, tmp_path)
        assert code == 0, (folder / "failure-train.json").read_text()
        masks.append(load_file(folder / "masks.safetensors"))
    assert masks[0]["student"].shape == masks[1]["student"].shape == (8, 2 * 48)
    assert masks[0]["teacher"].shape == (8, 3 * 64)
    assert not torch.equal(masks[0]["student"], masks[1]["student"])
