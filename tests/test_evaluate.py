import pickle
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import LlamaForCausalLM

from cdbench.data import read_examples
from cdbench.evaluate import Refused, load_masks, load_student, require_own, summarise_masks
from cdbench.generation import generate
from cdbench.predictions import NO_ANSWER, count, dump_predictions, parse_predictions, score
from cdbench.seeds import generator_for
from cdbench.tokens import encode
from cdbench.zoo import fresh
from conftest import World


@pytest.mark.parametrize(
    ("text", "first", "strict"),
    [
        ("57", "57", "57"),
        (" 57 ", "57", "57"),
        ("57+1", "57", NO_ANSWER),
        ("-12", "-12", "-12"),
        ("057", "057", "057"),
        ("=57", NO_ANSWER, NO_ANSWER),
        ("", NO_ANSWER, NO_ANSWER),
        ("5 7", "5", NO_ANSWER),
    ],
)
def test_the_two_scoring_rules(text: str, first: str, strict: str) -> None:
    prediction = score("12+45=", "57", text)
    assert (prediction.given, prediction.strict) == (first, strict)
    assert prediction.correct == (first == "57")
    assert prediction.strictly_correct == (strict == "57")


def test_format_errors_stand_apart_from_arithmetic_errors() -> None:
    counts = count(
        {"test": [score("1+1=", "2", t) for t in ("2", "3", "", "+", "2=")], "shift_x": [score("", "1", "1")]}
    )
    assert (counts["accuracy"].k, counts["strict"].k) == (2, 1)
    assert (counts["format_errors"], counts["arithmetic_errors"]) == (2, 1)
    assert counts["length_shift"]["x"].k == 1


@given(st.lists(st.text(max_size=8), min_size=1, max_size=5))
@hypothesis.example(["4\u20286", "\x85", "a\nb"])
def test_predictions_survive_the_file_and_are_scored_again(texts: list[str]) -> None:
    made = {"test": [score("1+1=", "2", text) for text in texts]}
    assert parse_predictions(dump_predictions(made)) == made
    forged = dump_predictions(made).replace('"given": "[none]"', '"given": "2"')
    assert parse_predictions(forged) == made


def test_generation_does_not_depend_on_the_batch(world: World) -> None:
    workspace = world.workspace()
    examples = read_examples(workspace.heldout_data / "test.jsonl")
    model, tokenizer = workspace.teacher.model(), workspace.tokenizer
    whole = generate(model, tokenizer, examples, 250)
    assert whole == generate(model, tokenizer, examples, 7)
    assert len(set(whole)) > 3
    # The library's own greedy decoding, one prompt at a time, says the same.
    for example, text in list(zip(examples, whole, strict=True))[:20]:
        ids = torch.tensor([tokenizer(example.prompt)["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False)
        assert tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True) == text


def student_state(world: World) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in world.workspace().student.model().state_dict().items()}


def test_good_weights_are_loaded(world: World, tmp_path: Path) -> None:
    state = student_state(world)
    state["lm_head.weight"] += 1
    save_file(state, tmp_path / "w.safetensors")
    loaded = load_student(world.workspace().student.model(), tmp_path / "w.safetensors")
    assert torch.equal(loaded.lm_head.weight, state["lm_head.weight"])


def spoil_missing(state: dict[str, torch.Tensor]) -> None:
    del state["lm_head.weight"]


def spoil_extra(state: dict[str, torch.Tensor]) -> None:
    state["backdoor"] = torch.zeros(1)


def spoil_shape(state: dict[str, torch.Tensor]) -> None:
    state["lm_head.weight"] = torch.zeros(3, 3)


def spoil_nan(state: dict[str, torch.Tensor]) -> None:
    state["lm_head.weight"][0, 0] = float("nan")


def spoil_integers(state: dict[str, torch.Tensor]) -> None:
    state["lm_head.weight"] = torch.zeros_like(state["lm_head.weight"], dtype=torch.int32)


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (spoil_missing, "lack lm_head.weight"),
        (spoil_extra, "hold backdoor"),
        (spoil_shape, r"lm_head.weight has shape \(3, 3\)"),
        (spoil_nan, "not finite"),
        (spoil_integers, "not finite floating-point"),
    ],
)
def test_weights_that_are_not_the_students_are_refused(spoil, complaint: str, world: World, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    state = student_state(world)
    spoil(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(Refused, match=complaint):
        load_student(world.workspace().student.model(), tmp_path / "w.safetensors")


def test_a_pickle_and_a_link_are_refused(world: World, tmp_path: Path) -> None:
    model = world.workspace().student.model()
    (tmp_path / "p.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(Refused, match="not a safetensors file"):
        load_student(model, tmp_path / "p.safetensors")
    (tmp_path / "l.safetensors").symlink_to(world.workspace().student.folder / "model.safetensors")
    with pytest.raises(Refused, match="not a regular file"):
        load_student(model, tmp_path / "l.safetensors")


def test_the_teacher_handed_in_again_is_refused(world: World) -> None:
    """Also rounded, with noise, louder, or with its neurons in another order, which are other weights and the same student."""
    workspace = world.workspace()
    split = encode(workspace.tokenizer, workspace.validation_examples)
    teacher, base = workspace.teacher.model(), fresh(workspace.teacher.model().config, generator_for("test"))

    def handed_in(change: Callable[[torch.Tensor], torch.Tensor]) -> LlamaForCausalLM:
        model = workspace.teacher.model()
        for value in model.parameters():
            value.data = change(value.data)
        return model

    draw = torch.Generator().manual_seed(0)
    noisy = handed_in(lambda value: value * (1 + 5e-4 * torch.randn(value.shape, generator=draw)))
    mlp = (permuted := workspace.teacher.model()).model.layers[0].mlp
    order = torch.randperm(mlp.gate_proj.out_features, generator=draw)
    for part in (mlp.gate_proj, mlp.up_proj):
        part.weight.data = part.weight.data[order]
    mlp.down_proj.weight.data = mlp.down_proj.weight.data[:, order]
    assert not torch.equal(mlp.up_proj.weight, teacher.model.layers[0].mlp.up_proj.weight)
    louder = workspace.teacher.model()
    louder.model.norm.weight.data *= 1.1
    rounded = handed_in(lambda value: value.bfloat16().float())
    elsewhere, broken = workspace.teacher.model(), workspace.teacher.model()
    unused = workspace.tokenizer.convert_tokens_to_ids("+")
    assert unused not in split.answer_tokens
    elsewhere.lm_head.weight.data[unused] *= 100
    broken.lm_head.weight.data[unused] = 3e38
    for disguised in (workspace.teacher.model(), rounded, noisy, permuted, louder, elsewhere, broken):
        with pytest.raises(Refused, match="compute what the teacher computes"):
            require_own(disguised, base, teacher, split)
    require_own(base, base, teacher, split)
    require_own(handed_in(lambda value: value * 1.05), base, teacher, split)
    endless = workspace.teacher.model()
    endless.lm_head.weight.data.fill_(3e38)
    with pytest.raises(Refused, match="logits that are not finite"):
        require_own(endless, base, teacher, split)


def test_a_student_that_was_its_teachers_copy_before_training_is_its_own(world: World) -> None:
    workspace = world.workspace()
    split = encode(workspace.tokenizer, workspace.validation_examples)
    near = workspace.teacher.model()
    near.lm_head.weight.data[3] *= 1.001
    require_own(near, near, workspace.teacher.model(), split)


def test_masks_by_hand() -> None:
    summary = summarise_masks(torch.tensor([[0.9, 0.8, 0.1, 0.1], [0.9, 0.1, 0.1, 0.1]]), 2)
    assert summary.sparsity == pytest.approx(5 / 8)
    assert summary.overlap == pytest.approx(1 / 2)  # one neuron on in both, two in either
    assert summary.mean_value == pytest.approx(3.1 / 8)


@pytest.mark.parametrize(
    ("masks", "complaint"),
    [
        ({"assistant": torch.zeros(2, 4)}, "masks for 'assistant'"),
        ({"student": torch.zeros(2, 5)}, r"expected \[classes, 4\]"),
        ({"student": torch.zeros(10_000, 4)}, "of 10000 classes; 1 to 64"),
        ({"student": torch.zeros(0, 4)}, "of 0 classes; 1 to 64"),
        ({"student": torch.full((2, 4), 1.5)}, r"outside \[0, 1\]"),
        ({"student": torch.full((2, 4), float("nan"))}, r"outside \[0, 1\]"),
    ],
)
def test_masks_that_are_none_are_refused(masks: dict[str, torch.Tensor], complaint: str, tmp_path: Path) -> None:
    save_file(masks, tmp_path / "m.safetensors")
    with pytest.raises(Refused, match=complaint):
        load_masks(tmp_path / "m.safetensors", {"student": 4, "teacher": 8})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lm_eval_agrees_item_by_item_under_both_rules(world: World, tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from cdbench.evaluate import predict
    from cdbench.lm_eval_tasks import write_tasks

    workspace = world.workspace()
    names = write_tasks(tmp_path, world.profile.data)
    assert "cdbench_addition_2digit" in names
    model = HFLM(pretrained=workspace.teacher.model(), tokenizer=workspace.tokenizer, batch_size=32)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    result = lm_eval.simple_evaluate(model, tasks=["cdbench_addition_2digit"], task_manager=manager, bootstrap_iters=0)
    samples = result["samples"]["cdbench_addition_2digit"]
    examples = read_examples(workspace.heldout_data / "test.jsonl")
    ours = {p.prompt: p for p in predict(workspace.teacher.model(), workspace.tokenizer, examples, 250)}
    assert len(samples) == 2 * len(ours)
    assert sum(p.correct for p in ours.values()) > 0
    for sample in samples:
        prediction = ours[sample["doc"]["prompt"]]
        want = prediction.correct if sample["filter"] == "answer" else prediction.strictly_correct
        assert sample["exact_match"] == float(want), sample["doc"]
