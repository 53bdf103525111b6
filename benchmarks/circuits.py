"""What looking at circuits costs, side by side with how it is usually done, in one run.

    git clone https://github.com/hannamw/EAP-IG; make oracles
    PYTHONPATH=.oracles python benchmarks/circuits.py EAP-IG/src [--quick]

- attribution of all nodes, in forward passes of the same model (target: at most 4, whatever the number of nodes), held against
  hooks on the model's own modules and autograd;
- edges against EAP-IG's own package, at least 2 times faster, with one gradient (EAP) and with five (EAP-IG);
- edges against a plainer way, a copy of the residual stream per reader: no figure to reach;
- mean ablation of every MLP against a hook and a whole pass each, at 16 layers: at least 1.9 times faster, equal accuracies;
- exact patching of all nodes against a hook and a whole pass each, on small batches: at least 3 times faster.

Times are medians of alternating repetitions; each pair of ways is held against each other, and the largest difference is printed.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import eap_ig
import torch
from machine import alternately, save
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from cdbench.api import Example
from cdbench.circuits.ablation import ablated_accuracy
from cdbench.circuits.attribution import attribute
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.forward import Forward, frozen
from cdbench.circuits.graph import Graph
from cdbench.circuits.patching import ablated_hits, expanded, mean_outputs, patch_exactly
from cdbench.seeds import generator_for
from cdbench.tokens import Encoded
from cdbench.zoo import exact_match, fresh

VOCABULARY = 512


def llama(layers: int, heads: int, hidden: int, shared: int = 2) -> LlamaForCausalLM:
    """A random Llama; `shared` heads have one of keys and values."""
    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // shared, vocab_size=VOCABULARY, initializer_range=0.05, tie_word_embeddings=False,
    )  # fmt: skip
    return fresh(config, generator_for("benchmark", layers, heads, hidden)).eval()


def contrasts(n: int, t: int = 12) -> Contrasts:
    """Random prompts that differ at two positions."""
    g = generator_for("benchmark-contrasts", n)
    clean = torch.randint(3, VOCABULARY, (n, t), generator=g)
    corrupt = clean.clone()
    corrupt[:, [2, 5]] = torch.randint(3, VOCABULARY, (n, 2), generator=g)
    last, (correct, other) = torch.full((n,), t - 1), torch.randint(3, VOCABULARY, (2, n), generator=g)
    return Contrasts(clean, corrupt, last, last, correct, other, ((Example("", "", ()),) * 2,) * n)


def beside(
    usual: tuple[str, Callable[[], Tensor]], own: tuple[str, Callable[[], Tensor]], repeats: int
) -> dict[str, Any]:
    """Seconds of the usual way and of ours, how much faster ours is, and how far what they find lies apart."""
    seconds, found = alternately(dict([usual, own]), repeats)
    return {
        **seconds,
        "times_faster": seconds[usual[0]] / seconds[own[0]],
        "largest_difference": float((found[usual[0]] - found[own[0]]).abs().max()),
        "largest_score": float(found[usual[0]].abs().max()),
    }


@torch.no_grad()
def one_forward(model: LlamaForCausalLM, pairs: Contrasts) -> Tensor:
    """The model's own forward, logits at the last position only."""
    logits: Tensor = model(input_ids=pairs.clean, use_cache=False, logits_to_keep=1).logits
    return logits


def hooked_nodes(model: LlamaForCausalLM, pairs: Contrasts) -> Tensor:
    """The usual way: hooks on the model's own modules, and autograd from the metric to what they have seen; mean, [nodes]."""
    seen: list[Tensor] = []
    heads = model.config.num_attention_heads

    def embedded(module: nn.Module, args: Any, out: Tensor) -> Tensor:
        seen.append(out.detach().requires_grad_())
        return seen[-1]

    def written(module: nn.Module, args: Any, out: Tensor) -> None:
        seen.append(out)

    hooks = [model.model.embed_tokens.register_forward_hook(embedded)]
    for layer in model.model.layers:
        hooks.append(layer.self_attn.o_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0])))
        hooks.append(layer.mlp.register_forward_hook(written))
    try:
        with frozen(model):
            with torch.no_grad():
                model(input_ids=pairs.corrupt, use_cache=False, logits_to_keep=1)
            far, seen[:] = list(seen), []
            with torch.enable_grad():
                logits = model(input_ids=pairs.clean, use_cache=False, logits_to_keep=1).logits[:, 0]
                gradients = torch.autograd.grad(pairs.difference(logits).sum(), seen)
    finally:
        for hook in hooks:
            hook.remove()
    moved = [((a - b).detach() * g).sum(1).mean(0) for a, b, g in zip(seen, far, gradients, strict=True)]
    of_layers = zip(moved[1::2], moved[2::2], strict=True)
    parts = [
        moved[0].sum()[None],
        *(x for z, m in of_layers for x in (z.unflatten(0, (heads, -1)).sum(1), m.sum()[None])),
    ]
    return torch.cat(parts)


def attribution(repeats: int) -> list[dict[str, Any]]:
    """Forward-equivalents of attributing all nodes, for more and more heads at one width, beside hooks and autograd."""
    rows = []
    for heads in (4, 8, 16):
        model, pairs = llama(16, heads, 256), contrasts(32)
        ways = {
            "forward": lambda: one_forward(model, pairs),  # noqa: B023
            "hooks": lambda: hooked_nodes(model, pairs),  # noqa: B023
            "nodes": lambda: attribute(model, pairs).mean,  # noqa: B023
        }
        seconds, found = alternately(ways, repeats)
        rows.append(
            {
                "number_of_nodes": len(Graph.of(model).nodes),
                **seconds,
                "forward_equivalents": seconds["nodes"] / seconds["forward"],
                "largest_difference": float((found["nodes"] - found["hooks"]).abs().max()),
                "largest_score": float(found["hooks"].abs().max()),
            }
        )
    return rows


def split_edges(model: LlamaForCausalLM, pairs: Contrasts) -> Tensor:
    """The usual way: each reader has a copy of the stream of its own, and autograd gives the gradient at each copy."""
    forward, graph = Forward(model), Graph.of(model)
    copies: list[Tensor] = []

    def inputs(layer: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        block, own = forward.blocks[layer], forward.blocks[layer].self_attn
        found = []
        for part in (own.q_proj, own.k_proj, own.v_proj):
            copy = x[:, :, None].expand(-1, -1, graph.heads, -1).clone()
            copies.append(copy)
            weight = part.weight.unflatten(0, (-1, forward.head_width))
            if part is not own.q_proj:
                weight = weight.repeat_interleave(forward.shared, dim=0)
            found.append(torch.einsum("bthw,hew->bthe", block.input_layernorm(copy), weight))
        return found[0], found[1], found[2]

    with torch.no_grad():
        near = forward.trace(forward.embed(pairs.clean)).outputs
        far = forward.trace(forward.embed(pairs.corrupt)).outputs
    with frozen(model), torch.enable_grad():
        x = forward.embed(pairs.clean).detach().requires_grad_()
        rotary = forward.rotary(x)
        for i in range(graph.layers):
            x = x + forward.project(i, forward.attend(i, *inputs(i, x), rotary=rotary))
            copies.append(x.clone())
            x = x + forward.mlp(i, copies[-1])
        metric = pairs.difference(forward.logits(x, pairs.last)).sum()
        gradients = torch.autograd.grad(metric, [*copies, x])
    with torch.no_grad():
        written = [(near.embedding - far.embedding)[:, :, None]]
        for i in range(graph.layers):
            written.append(forward.write(i, near.heads[i] - far.heads[i]))
            written.append((near.mlps[i] - far.mlps[i])[:, :, None])
        moved = torch.cat(written, dim=2)
        columns = [g if g.ndim == 4 else g[:, :, None] for g in gradients]
        scores = torch.einsum("btsw,btrw->sr", moved, torch.cat(columns, dim=2)) / len(pairs)
    return scores * graph.edge_mask


def edges(repeats: int) -> dict[str, Any]:
    """Edge attribution against a copy of the stream per reader."""
    model, pairs = llama(12, 8, 256), contrasts(64)
    usual = ("copies", lambda: split_edges(model, pairs))
    own = ("closed form", lambda: attribute(model, pairs, "edge").mean)
    return {"edges": len(Graph.of(model).edges), **beside(usual, own, repeats)}


def random_split(n: int, t: int = 10) -> Encoded:
    """Random prompts, and the answers that an untrained model would give by chance: accuracies near 1 in 4 tokens."""
    ids = torch.randint(3, VOCABULARY, (n, t), generator=generator_for("benchmark-split"))
    last = torch.full((n,), t - 1)
    return Encoded(ids, last, last[:, None], torch.zeros(n, 1, dtype=torch.long))


def ablation(repeats: int) -> dict[str, Any]:
    """Accuracy as it is (1: the answers are the model's own) and with each of 16 MLPs at its mean: by restart, and by hooks."""
    model, split = llama(16, 8, 256), random_split(200)
    with torch.no_grad():
        own = model(input_ids=split.ids, use_cache=False, logits_to_keep=1).logits.argmax(-1)
    split = replace(split, answer_tokens=own)
    means, graph = mean_outputs(model, split), Graph.of(model)
    nodes = [graph.mlp(i) for i in range(16)]

    def by_hooks() -> list[float]:
        whole = exact_match(model, split).double().mean().item()
        return [whole, *(ablated_accuracy(model, split, i, means.mlps[i][0, 0]) for i in range(16))]

    def by_restart() -> list[float]:
        whole, ablated = ablated_hits(model, split, nodes, lambda batch: expanded(means, batch.ids))
        return [whole.double().mean().item(), *ablated.double().mean(0).tolist()]

    seconds, found = alternately({"hooks": by_hooks, "restart": by_restart}, repeats)
    return {
        "layers": 16,
        **seconds,
        "times_faster": seconds["hooks"] / seconds["restart"],
        "equal_accuracies": found["hooks"] == found["restart"],
        "accuracies": found["hooks"],
    }


@torch.no_grad()
def naive_exact(model: LlamaForCausalLM, pairs: Contrasts) -> Tensor:
    """One hook and one whole pass of the model a node: [n, nodes]."""
    graph, forward = Graph.of(model), Forward(model)
    corrupt = forward.trace(forward.embed(pairs.corrupt)).outputs
    base = pairs.difference(one_forward(model, pairs)[:, -1])
    width, found = forward.head_width, []

    def passed(module: nn.Module, before: bool, hook: Callable[..., Any]) -> None:
        handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
        found.append(base - pairs.difference(one_forward(model, pairs)[:, -1]))
        handle.remove()

    passed(model.model.embed_tokens, False, lambda m, a, o: corrupt.embedding)
    for i, layer in enumerate(model.model.layers):
        for h in range(graph.heads):

            def head(m: nn.Module, a: tuple[Tensor], i: int = i, h: int = h) -> tuple[Tensor]:
                z = a[0].clone()
                z[..., h * width : (h + 1) * width] = corrupt.heads[i][:, :, h]
                return (z,)

            passed(layer.self_attn.o_proj, True, head)
        passed(layer.mlp, False, lambda m, a, o, i=i: corrupt.mlps[i])
    return torch.stack(found, 1)


def exact(repeats: int) -> dict[str, Any]:
    """Exact patching of all nodes, four problems."""
    model, pairs = llama(16, 8, 256), contrasts(4)
    usual = ("hooks", lambda: naive_exact(model, pairs))
    own = ("restart", lambda: patch_exactly(model, pairs))
    return {"nodes": len(Graph.of(model).nodes), "problems": 4, **beside(usual, own, repeats)}


def main() -> None:
    """Runs all and writes results/circuits.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the folder in which EAP-IG's package `eap` lies")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, and nothing is written")
    given = parser.parse_args()
    if reason := eap_ig.missing(given.checkout):
        parser.error(reason)
    torch.set_num_threads(1)
    repeats = 2 if given.quick else 9
    result = {
        "attribution": attribution(repeats),
        "edges": edges(repeats),
        "eap_ig": eap_ig.measured(given.checkout, llama(12, 8, 256, shared=1), contrasts(64), repeats),
        "ablation": ablation(repeats),
        "exact": exact(repeats),
    }
    if given.quick:
        print(result)
    else:
        save("circuits", result)


if __name__ == "__main__":
    main()
