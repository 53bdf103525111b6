"""A model built so that one head carries the carry: every way of looking for it must find that head.

One layer of four heads. Dimension 0 of the stream is a large constant, so that the norms are nearly linear; dimension 1 holds a
digit's value. Head 2 reads the mean of dimension 1 over the four tokens of "a+b=" and writes four times that, a + b, into
dimension 3; the other heads write noise elsewhere. The logit of "1" (the first digit of a sum of 10 or more) grows with what is
read off there.
"""

from dataclasses import replace
from random import Random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cdbench.api import Example
from cdbench.circuits.attribution import attribute
from cdbench.circuits.contrasts import Contrasts, make_contrasts
from cdbench.circuits.faithfulness import circuit_metric
from cdbench.circuits.graph import Circuit, Graph, top
from cdbench.circuits.interchange import interchange_hits, make_interchanges
from cdbench.circuits.patching import ablated_hits, mean_outputs, patch_exactly
from cdbench.seeds import generator_for
from cdbench.tokens import encode
from cdbench.zoo import fresh, make_tokenizer

PLANTED, WIDTH, LARGE = "a0.h2", 16, 1000.0


def planted(*, step: bool) -> LlamaForCausalLM:
    """`step`: an MLP makes a carry of 0 or 20 out of the sum; else the logit grows evenly with the sum."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    model = fresh(config, generator_for("planted")).eval()
    layer, one = model.model.layers[0], tokenizer.convert_tokens_to_ids("1")
    with torch.no_grad():
        for norm in (layer.input_layernorm, layer.post_attention_layernorm, model.model.norm):
            norm.weight.fill_(LARGE / WIDTH**0.5)  # the norm divides by about this
        embedding = model.model.embed_tokens.weight.zero_()
        embedding[:, 0] = LARGE
        for digit in range(10):
            embedding[tokenizer.convert_tokens_to_ids(str(digit)), 1] = digit
        layer.self_attn.q_proj.weight.zero_()  # every head looks at all tokens alike
        layer.self_attn.v_proj.weight.mul_(0.01)
        layer.self_attn.o_proj.weight.mul_(0.01)
        layer.self_attn.o_proj.weight[3] = 0
        layer.self_attn.v_proj.weight[8] = 0
        layer.self_attn.v_proj.weight[8, 1] = 4.0  # head 2 is rows 8 to 11
        layer.self_attn.o_proj.weight[3, 8] = 1.0
        layer.mlp.gate_proj.weight.zero_()
        layer.mlp.up_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        if step:
            for neuron, threshold in enumerate((9.0, 10.0)):
                layer.mlp.gate_proj.weight[neuron, 3] = 20.0
                layer.mlp.gate_proj.weight[neuron, 0] = -20.0 * threshold / LARGE
                layer.mlp.up_proj.weight[neuron, 0] = 1 / LARGE
            layer.mlp.down_proj.weight[4, :2] = torch.tensor([1.0, -1.0])
            model.lm_head.weight[one, 4] = 1.0
            model.lm_head.weight[one, 0] = -10 / LARGE
        else:
            model.lm_head.weight[one, 3] = 2.0
            model.lm_head.weight[one, 0] = -19 / LARGE
    return model


def sums(carry: bool, draw: Random, n: int) -> list[Example]:
    pool = [(a, b) for a in range(10) for b in range(10) if (a + b >= 10) == carry and a + b != 1]
    return [Example(f"{a}+{b}=", str(a + b), (a, b)) for a, b in draw.choices(pool, k=n)]


@pytest.fixture
def pairs() -> Contrasts:
    draw = Random(0)
    return make_contrasts(make_tokenizer(), list(zip(sums(True, draw, 40), sums(False, draw, 40), strict=True)))


def test_interchange_finds_the_head_that_carries_the_carry() -> None:
    """Of sums below 10 with the carry of one of 10 or more: the first digit turns to 1 where the input, the head, or the MLP that
    makes the carry of its sum is exchanged, on every pair; nowhere else on any. (Only the first digit is asked of this model.)"""
    draw = Random(0)
    made = make_interchanges(make_tokenizer(), sums(True, draw, 40) + sums(False, draw, 40), "ones_carry", Random(1))
    pairs = zip(made.pairs, made.expected, strict=True)
    rows = [i for i, ((base, _), expected) in enumerate(pairs) if len(base.answer) == 1 and len(expected) == 2]
    first = made.base.select(torch.tensor(rows))
    first = replace(first, answer_positions=first.answer_positions[:, :1], answer_tokens=first.answer_tokens[:, :1])
    some = replace(
        made, base=first, source=made.source[rows],
        pairs=tuple(made.pairs[i] for i in rows), expected=tuple(made.expected[i] for i in rows),
    )  # fmt: skip
    assert len(some) == 40
    hits = interchange_hits(planted(step=True), some, range(6)).float().mean(0)
    assert dict(zip(Graph(1, 4, WIDTH).nodes, hits.tolist(), strict=True)) == {
        "input": 1, "a0.h0": 0, "a0.h1": 0, PLANTED: 1, "a0.h3": 0, "m0": 1,
    }  # fmt: skip


def heads(scores: torch.Tensor) -> dict[str, float]:
    names = Graph(1, 4, WIDTH).nodes
    return {name: scores[i].item() for i, name in enumerate(names) if name.startswith("a")}


def assert_planted_stands_out(scores: torch.Tensor) -> None:
    found = heads(scores)
    others = [abs(value) for name, value in found.items() if name != PLANTED]
    assert found[PLANTED] > 20 * max(others), found


def test_the_model_knows_whether_there_is_a_carry(pairs: Contrasts) -> None:
    model, one = planted(step=True), make_tokenizer().convert_tokens_to_ids("1")
    with torch.no_grad():
        for ids, carried in ((pairs.clean, True), (pairs.corrupt, False)):
            assert ((model(input_ids=ids).logits[:, -1, one] > 0) == carried).all()


@pytest.mark.parametrize("step", [False, True])
def test_exact_patching_finds_the_planted_head(pairs: Contrasts, step: bool) -> None:
    assert_planted_stands_out(patch_exactly(planted(step=step), pairs).mean)


def test_attribution_finds_it_at_every_level(pairs: Contrasts) -> None:
    model = planted(step=False)
    assert_planted_stands_out(attribute(model, pairs).mean)
    assert_planted_stands_out(attribute(model, pairs, "neuron").mean[:, 3])
    graph = Graph.of(model)
    edges = attribute(model, pairs, "edge").mean
    best = edges[graph.edge_mask].argsort(descending=True)[:2].tolist()
    assert {graph.edges[i] for i in best} == {f"{PLANTED}->logits", f"input->{PLANTED}<v>"}


def test_where_the_answer_is_saturated_plain_attribution_misses_it_and_integrated_gradients_do_not(
    pairs: Contrasts,
) -> None:
    """Why attribution is always held against exact patching: beyond the step its slope is nothing."""
    model = planted(step=True)
    exact = heads(patch_exactly(model, pairs).mean)[PLANTED]
    assert heads(attribute(model, pairs).mean)[PLANTED] < 0.3 * exact
    integrated = attribute(model, pairs, steps=60).mean
    assert_planted_stands_out(integrated)
    assert heads(integrated)[PLANTED] == pytest.approx(exact, rel=0.2)


def test_mean_ablation_finds_it() -> None:
    model, tokenizer, draw = planted(step=True), make_tokenizer(), Random(0)
    # Only the first digit of the answer is this model's to give; problems with a carry begin with "1".
    examples = [Example(e.prompt, "1", e.operands) for e in sums(True, draw, 40)]
    eos_too = encode(tokenizer, examples)
    split = type(eos_too)(
        eos_too.ids, eos_too.last_prompt, eos_too.answer_positions[:, :1], eos_too.answer_tokens[:, :1]
    )
    calibration = encode(tokenizer, sums(False, draw, 60))  # whose mean is no carry
    graph = Graph.of(model)
    whole, ablated = ablated_hits(model, split, mean_outputs(model, calibration), range(len(graph.nodes)))
    assert whole.all()
    lost = (whole[:, None].float() - ablated.float()).mean(0)
    assert heads(lost)[PLANTED] == 1
    assert all(value == 0 for name, value in heads(lost).items() if name != PLANTED)


def test_the_circuit_of_input_and_head_is_enough(pairs: Contrasts) -> None:
    model = planted(step=False)
    graph = Graph.of(model)
    circuit = top(attribute(model, pairs).mean, 2, graph, "node")
    assert circuit.names == ["input", PLANTED]
    whole, empty, alone = circuit_metric(model, pairs, [Circuit.whole(graph), Circuit.empty(graph), circuit]).mean(1)
    assert (alone - empty) / (whole - empty) == pytest.approx(1, abs=0.01)
