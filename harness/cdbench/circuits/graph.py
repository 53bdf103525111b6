"""A Llama as a graph of nodes and edges, with MIB's names and in its order (Mueller et al. 2025; Hanna et al. 2024, EAP-IG).

Nodes: `input` (the embedding), `a3.h5` (query head 5 of layer 3), `m3` (its MLP), each writing into the residual stream. Edges:
`a3.h5->m4`, `input->a3.h5<q>` (into a head's query, key or value), `m3->logits`. With grouped-query attention each query head has
keys and values of its own, as in MIB. Neurons are residual dimensions of a node's output, as in MIB, not hidden units of an MLP.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

Level = Literal["node", "edge", "neuron"]
LEVELS: tuple[Level, ...] = ("node", "edge", "neuron")


@dataclass(frozen=True)
class Graph:
    """All nodes and edges of a model with so many layers, heads (query heads) and residual dimensions (width)."""

    layers: int
    heads: int
    width: int

    @classmethod
    def of(cls, model: LlamaForCausalLM) -> "Graph":
        """The graph of a model."""
        config = model.config
        return cls(config.num_hidden_layers, config.num_attention_heads, config.hidden_size)

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Everything that writes into the residual stream, in the order in which it does: 1 + layers * (heads + 1)."""
        blocks = ([*(f"a{i}.h{j}" for j in range(self.heads)), f"m{i}"] for i in range(self.layers))
        return ("input", *(name for block in blocks for name in block))

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Everything that reads from it: per layer the heads' queries, keys and values, then the MLP; at last the logits."""
        blocks = (
            [*(f"a{i}.h{j}<{part}>" for part in "qkv" for j in range(self.heads)), f"m{i}"] for i in range(self.layers)
        )
        return (*(name for block in blocks for name in block), "logits")

    def head(self, layer: int, head: int) -> int:
        """A head's place among the nodes."""
        return 1 + layer * (self.heads + 1) + head

    def mlp(self, layer: int) -> int:
        """An MLP's place among the nodes."""
        return self.head(layer, self.heads)

    @cached_property
    def written_before(self) -> tuple[int, ...]:
        """For each reader how many nodes stand before it: those have edges to it."""
        counts: list[int] = []
        for i in range(self.layers):
            counts += [self.head(i, 0)] * (3 * self.heads) + [self.mlp(i)]
        return (*counts, len(self.nodes))

    @cached_property
    def edge_mask(self) -> Tensor:
        """[nodes, readers] bool: the edges that exist."""
        return torch.arange(len(self.nodes))[:, None] < torch.tensor(self.written_before)[None]

    @cached_property
    def edges(self) -> tuple[str, ...]:
        """Names of all edges, row after row of `edge_mask`."""
        rows, columns = self.edge_mask.nonzero(as_tuple=True)
        return tuple(
            f"{self.nodes[i]}->{self.readers[j]}" for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
        )

    @cached_property
    def readers_of(self) -> Tensor:
        """[nodes, readers] bool: which readers are a node's own inputs (three for a head, one for an MLP, none for the input)."""
        own = torch.zeros(len(self.nodes), len(self.readers), dtype=torch.bool)
        place = {name: i for i, name in enumerate(self.nodes)}
        for column, reader in enumerate(self.readers[:-1]):
            own[place[reader.partition("<")[0]], column] = True
        return own

    def heads_beside(self, node: int) -> list[int] | None:
        """The places of all heads of a head's layer, its own among them; None for the input or an MLP."""
        layer, place = divmod(node - 1, self.heads + 1)
        return None if node == 0 or place == self.heads else [self.head(layer, h) for h in range(self.heads)]

    def shape(self, level: Level) -> tuple[int, ...]:
        """The shape of scores at a level: [nodes], [nodes, readers] or [nodes, width]."""
        last = {"node": (), "edge": (len(self.readers),), "neuron": (self.width,)}[level]
        return (len(self.nodes), *last)

    def items(self, level: Level) -> int:
        """How many there are to choose from."""
        return {"node": len(self.nodes), "edge": len(self.edges), "neuron": len(self.nodes) * self.width}[level]

    def names(self, level: Level) -> Iterator[str]:
        """Their names, in the order of flattened scores (for edges: of those that exist)."""
        if level == "neuron":
            return (f"{node}.{i}" for node in self.nodes for i in range(self.width))
        return iter(self.nodes if level == "node" else self.edges)


@dataclass(frozen=True)
class Circuit:
    """Part of a graph, as bool: nodes [nodes]; edges [nodes, readers] at edge level; neurons [nodes, width] at neuron level."""

    graph: Graph
    nodes: Tensor
    edges: Tensor | None = None
    neurons: Tensor | None = None

    @classmethod
    def whole(cls, graph: Graph, level: Level = "node") -> "Circuit":
        """Everything."""
        return cls._all(graph, level, True)

    @classmethod
    def empty(cls, graph: Graph, level: Level = "node") -> "Circuit":
        """Nothing."""
        return cls._all(graph, level, False)

    @classmethod
    def _all(cls, graph: Graph, level: Level, kept: bool) -> "Circuit":
        nodes = torch.full((len(graph.nodes),), kept)
        if level == "edge":
            return cls(graph, nodes, edges=graph.edge_mask & kept)
        return cls(graph, nodes, neurons=torch.full(graph.shape(level), kept) if level == "neuron" else None)

    @property
    def names(self) -> list[str]:
        """Its nodes."""
        return [name for name, on in zip(self.graph.nodes, self.nodes.tolist(), strict=True) if on]

    def __len__(self) -> int:
        """How many nodes, edges or neurons it has, whichever it is made of."""
        for parts in (self.edges, self.neurons):
            if parts is not None:
                return int(parts.sum())
        return int(self.nodes.sum())


def top(scores: Tensor, n: int, graph: Graph, level: Level, *, absolute: bool = False) -> Circuit:
    """The circuit of the `n` items of largest score, or largest |score|; equal scores in the order of the graph.

    Edges that lead nowhere are pruned: a node needs an edge in (the input excepted) and an edge out. MIB's code stops when the
    same nodes stay, which may leave edges that lead nowhere; no number depends on those.

    Raises:
        ValueError: `n` is negative or above all, the scores are of another shape, or not finite.
    """
    if tuple(scores.shape) != graph.shape(level):
        raise ValueError(f"{level} scores of shape {tuple(scores.shape)}; this model's have {graph.shape(level)}")
    if not 0 <= n <= graph.items(level):
        raise ValueError(f"a circuit of {n} {level}s; the model has {graph.items(level)}")
    exists = graph.edge_mask if level == "edge" else torch.ones_like(scores, dtype=torch.bool)
    values = scores[exists]
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"{int((~torch.isfinite(values)).sum())} of {len(values)} {level} scores are not finite")
    chosen = torch.zeros_like(values, dtype=torch.bool)
    chosen[(values.abs() if absolute else values).argsort(descending=True, stable=True)[:n]] = True
    kept = torch.zeros_like(exists)
    kept[exists] = chosen
    if level == "edge":
        return prune(kept, graph)
    return Circuit(graph, kept) if level == "node" else Circuit(graph, kept.any(1), neurons=kept)


def prune(edges: Tensor, graph: Graph) -> Circuit:
    """Takes away edges [nodes, readers] of which one end has no way to the input or the logits, until none is left."""
    own = graph.readers_of
    while True:
        fed = (own & edges.any(0)[None]).any(1)
        fed[0] = True
        nodes = edges.any(1) & fed
        reached = (own & nodes[:, None]).any(0)
        reached[-1] = True
        kept = edges & nodes[:, None] & reached[None]
        if bool((kept == edges).all()):
            return Circuit(graph, nodes, edges=kept)
        edges = kept
