"""Models built so that one head carries the carry: every way of looking for it must find that head.

Dimension 0 of the stream is a large constant, so that the norms are nearly linear; dimension 1 holds a digit's value.

`planted`: one layer of four heads. Head 2 reads the mean of dimension 1 over the four tokens of "a+b=" and writes four times
that, a + b, into dimension 3; the other heads write noise elsewhere. The logit of "1" (the first digit of a sum of 10 or more)
grows with what is read off there, or an MLP makes the carry out of it.

`moving`: two layers. At the last digit the first makes a + b (its head 1) and of that the carry (its MLP), 20 or 0; head 2 of the
second looks at the token before, and moves the carry, and nothing else, to "=", where the logit of "1" is read off.
"""

import math
from dataclasses import replace
from random import Random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from cdbench.api import Example
from cdbench.circuits.attribution import attribute
from cdbench.circuits.contrasts import Contrasts, make_contrasts
from cdbench.circuits.faithfulness import circuit_metric
from cdbench.circuits.forward import Forward
from cdbench.circuits.graph import Circuit, Graph, top
from cdbench.circuits.interchange import Interchanges, interchange_hits, make_interchanges
from cdbench.circuits.patching import ablated_hits, expanded, mean_outputs, patch_exactly
from cdbench.seeds import generator_for
from cdbench.tokens import encode
from cdbench.zoo import fresh, make_tokenizer

PLANTED, MOVER, WIDTH, LARGE = "a0.h2", "a1.h2", 16, 1000.0


def blank(layers: int) -> LlamaForCausalLM:
    """Every head looks at all tokens alike and writes noise beside dimensions 1 to 5; MLPs and logits are nothing."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=4, tie_word_embeddings=False, attn_implementation="eager",
    )  # fmt: skip
    model = fresh(config, generator_for("planted")).eval()
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight.zero_()
        embedding[:, 0] = LARGE
        for digit in range(10):
            embedding[tokenizer.convert_tokens_to_ids(str(digit)), 1] = digit
        norms = [model.model.norm]
        for layer in model.model.layers:
            norms += [layer.input_layernorm, layer.post_attention_layernorm]
            layer.self_attn.q_proj.weight.zero_()
            layer.self_attn.v_proj.weight.mul_(0.01)
            layer.self_attn.o_proj.weight.mul_(0.01)[1:6] = 0
            for part in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
                part.weight.zero_()
        for norm in norms:
            norm.weight.fill_(LARGE / WIDTH**0.5)  # the norm divides by about this
        model.lm_head.weight.zero_()
    return model


def write(layer: LlamaDecoderLayer, head: int, source: int, target: int, factor: float) -> None:
    """A head writes `factor` times what it sees in dimension `source` into `target`."""
    first = 4 * head  # a head's first row
    layer.self_attn.v_proj.weight[first] = 0
    layer.self_attn.v_proj.weight[first, source] = factor
    layer.self_attn.o_proj.weight[target, first] = 1.0


def make_carry(layer: LlamaDecoderLayer) -> None:
    """The MLP writes into dimension 4 a carry of 20 where dimension 3 holds 10 or more, of 0 where it holds 9 or less."""
    for neuron, threshold in enumerate((9.0, 10.0)):
        layer.mlp.gate_proj.weight[neuron, 3] = 20.0
        layer.mlp.gate_proj.weight[neuron, 0] = -20.0 * threshold / LARGE
        layer.mlp.up_proj.weight[neuron, 0] = 1 / LARGE
    layer.mlp.down_proj.weight[4, :2] = torch.tensor([1.0, -1.0])


def read_off(model: LlamaForCausalLM, source: int, factor: float, offset: float) -> LlamaForCausalLM:
    """The logit of "1" is `factor` times a dimension, less `offset`."""
    one = make_tokenizer().convert_tokens_to_ids("1")
    model.lm_head.weight[one, source] = factor
    model.lm_head.weight[one, 0] = -offset / LARGE
    return model


@torch.no_grad()
def planted(*, step: bool) -> LlamaForCausalLM:
    """`step`: an MLP makes a carry of 0 or 20 out of the sum; else the logit grows evenly with the sum."""
    model = blank(1)
    (layer,) = model.model.layers
    write(layer, 2, source=1, target=3, factor=4.0)
    if not step:
        return read_off(model, 3, 2.0, 19)
    make_carry(layer)
    return read_off(model, 4, 1.0, 10)


@torch.no_grad()
def moving() -> LlamaForCausalLM:
    """The second layer's head 2 carries the carry from the last digit to "="."""
    model = blank(2)
    first, second = model.model.layers
    write(first, 1, source=1, target=3, factor=3.0)  # the mean over "a+b", times three
    make_carry(first)
    write(second, 2, source=4, target=5, factor=1.0)
    # Rotary pair (0, 2) of a head turns by 1 a token: this query agrees best with the key of the token before.
    query, key = second.self_attn.q_proj.weight[8:12], second.self_attn.k_proj.weight[8:12]
    query[0, 0], query[2, 0] = 200 * math.cos(1) / LARGE, -200 * math.sin(1) / LARGE
    key.zero_()[0, 0] = 1 / LARGE
    return read_off(model, 5, 1.0, 10)


def sums(carry: bool, draw: Random, n: int) -> list[Example]:
    pool = [(a, b) for a in range(10) for b in range(10) if (a + b >= 10) == carry and a + b != 1]
    return [Example(f"{a}+{b}=", str(a + b), (a, b)) for a, b in draw.choices(pool, k=n)]


@pytest.fixture
def pairs() -> Contrasts:
    draw = Random(0)
    return make_contrasts(make_tokenizer(), list(zip(sums(True, draw, 40), sums(False, draw, 40), strict=True)))


def exchanges() -> Interchanges:
    """Sums below 10 with the carry of one of 10 or more; the first digit is asked for alone."""
    draw = Random(0)
    examples = sums(True, draw, 40) + sums(False, draw, 40)
    made = make_interchanges(make_tokenizer(), examples, "ones_carry", Random(1))
    pairs = zip(made.pairs, made.expected, strict=True)
    rows = [i for i, ((base, _), expected) in enumerate(pairs) if len(base.answer) == 1 and len(expected) == 2]
    first = made.base.select(torch.tensor(rows))
    first = replace(first, answer_positions=first.answer_positions[:, :1], answer_tokens=first.answer_tokens[:, :1])
    return replace(
        made, base=first, source=made.source[rows],
        pairs=tuple(made.pairs[i] for i in rows), expected=tuple(made.expected[i] for i in rows),
    )  # fmt: skip


def test_interchange_finds_the_head_that_carries_the_carry() -> None:
    """The first digit turns to 1 where the input, the head, or the MLP that makes the carry of its sum is exchanged, on every
    pair; nowhere else on any."""
    some = exchanges()
    assert len(some) == 40
    hits = interchange_hits(planted(step=True), some, range(6)).float().mean(0)
    assert dict(zip(Graph(1, 4, WIDTH).nodes, hits.tolist(), strict=True)) == {
        "input": 1, "a0.h0": 0, "a0.h1": 0, PLANTED: 1, "a0.h3": 0, "m0": 1,
    }  # fmt: skip


def test_of_the_heads_that_read_the_carry_interchange_finds_the_one_that_moves_it() -> None:
    hits = interchange_hits(moving(), exchanges(), range(11)).float().mean(0)
    found = dict(zip(Graph(2, 4, WIDTH).nodes, hits.tolist(), strict=True))
    assert {name for name, value in found.items() if value == 1} == {"input", "a0.h1", "m0", MOVER}
    assert {name for name, value in found.items() if value == 0} == {
        "a0.h0", "a0.h2", "a0.h3", "a1.h0", "a1.h1", "a1.h3", "m1",
    }  # fmt: skip


@pytest.mark.parametrize("carry", [True, False])
def test_what_the_mover_writes_is_the_carry_and_no_digit(carry: bool) -> None:
    """From problem to problem its output at "=" is the same, whatever the digits, but for what they add to the norm's length."""
    model, tokenizer = moving(), make_tokenizer()
    split, forward = encode(tokenizer, sums(carry, Random(0), 40)), Forward(model)
    with torch.no_grad():
        heads = forward.trace(forward.embed(split.ids)).outputs.heads[1]
        written = forward.write(1, heads)[torch.arange(40), split.last_prompt, 2]
    assert written[:, 5].mean().item() == pytest.approx(20 if carry else 0, abs=0.02)
    assert written.std(0).max() < 0.01


def test_exact_patching_attribution_and_edges_find_the_head_that_moves_the_carry(pairs: Contrasts) -> None:
    model = moving()
    graph = Graph.of(model)
    for scores in (patch_exactly(model, pairs).mean(0), attribute(model, pairs).mean):
        found = dict(zip(graph.nodes, scores.tolist(), strict=True))
        assert found[MOVER] == pytest.approx(20, abs=0.1)  # of the logit difference, all
        assert all(abs(found[name]) < 0.1 for name in ("a1.h0", "a1.h1", "a1.h3", "m1"))
    edges = attribute(model, pairs, "edge").mean
    best = edges[graph.edge_mask].argsort(descending=True)[:2].tolist()
    assert {graph.edges[i] for i in best} == {f"{MOVER}->logits", f"m0->{MOVER}<v>"}


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
    assert_planted_stands_out(patch_exactly(planted(step=step), pairs).mean(0))


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
    exact = heads(patch_exactly(model, pairs).mean(0))[PLANTED]
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
    means = mean_outputs(model, calibration)
    whole, ablated = ablated_hits(model, split, range(len(graph.nodes)), lambda batch: expanded(means, batch.ids))
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
