"""MIB's files: importances and circuits in its two formats (Mueller et al. 2025).

A circuit file holds a graph's shape (`cfg`), scores of edges, nodes and neurons, and what is in the circuit. `.json` names
everything, `.pt` is a dictionary of tensors; MIB's own code reads both (EAP-IG's `Graph.from_json` and `Graph.from_pt`).
"""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cdbench.circuits.graph import LEVELS, Circuit, Graph, Level
from cdbench.errors import UserError, first_line
from cdbench.files import read_json, write_atomic


@dataclass(frozen=True)
class Importances:
    """What an MIB file holds: a graph and the scores of one level, or of several."""

    graph: Graph
    scores: Mapping[Level, Tensor]


def write(path: Path, graph: Graph, level: Level, scores: Tensor, circuit: Circuit | None = None) -> None:
    """Writes importances, and which items are in `circuit`, as `.json` or `.pt` by the name's ending.

    Raises:
        UserError: another ending.
    """
    chosen = Circuit.empty(graph) if circuit is None else circuit
    edges = graph.edge_mask & chosen.nodes[:, None] if chosen.edges is None else chosen.edges
    neurons = torch.zeros(graph.shape("neuron"), dtype=torch.bool) if chosen.neurons is None else chosen.neurons
    marks: Mapping[Level, Tensor] = {"node": chosen.nodes, "edge": edges, "neuron": neurons}
    if path.suffix == ".json":
        write_atomic(path, json.dumps(_as_json(graph, level, scores, marks)), "the circuit file")
    elif path.suffix == ".pt":
        _save_pt(path, graph, level, scores, marks)
    else:
        raise UserError(f"{path}: MIB knows .json and .pt files")


def _config(graph: Graph) -> dict[str, int | bool]:
    return {"n_layers": graph.layers, "n_heads": graph.heads, "parallel_attn_mlp": False, "d_model": graph.width}


def _as_json(graph: Graph, level: Level, scores: Tensor, marks: Mapping[Level, Tensor]) -> dict[str, Any]:
    def block(values: Tensor, node: int) -> Tensor:
        """A node's own; under each head those of all heads of its layer, as MIB's code writes and reads them."""
        own = graph.heads_beside(node)
        return values[node] if own is None else values[own]

    table: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(graph.nodes):
        table[name] = {"in_graph": bool(marks["node"][i])}
        if level == "node":
            table[name]["score"] = float(scores[i])
        if level == "neuron":
            table[name] |= {"neurons": block(marks["neuron"], i).tolist(), "neurons_scores": block(scores, i).tolist()}
    table["logits"] = {"in_graph": True}
    values = scores if level == "edge" else torch.zeros(graph.shape("edge"))
    places = graph.edge_mask.nonzero().tolist()
    flags, numbers = marks["edge"].tolist(), values.tolist()
    named = {
        name: {"score": numbers[i][j], "in_graph": flags[i][j]}
        for name, (i, j) in zip(graph.edges, places, strict=True)
    }
    return {"cfg": _config(graph), "nodes": table, "edges": named}


def _save_pt(path: Path, graph: Graph, level: Level, scores: Tensor, marks: Mapping[Level, Tensor]) -> None:
    import io

    table: dict[str, Any] = {
        "cfg": _config(graph),
        "src_nodes": list(graph.nodes),
        "dst_nodes": list(graph.readers),
        "edges_scores": scores.float() if level == "edge" else torch.zeros(graph.shape("edge")),
        "edges_in_graph": marks["edge"],
        "nodes_in_graph": marks["node"],
    }
    if level == "node":
        table["nodes_scores"] = scores.float()
    if level == "neuron":
        table |= {"neurons_scores": scores.float(), "neurons_in_graph": marks["neuron"]}
    buffer = io.BytesIO()
    torch.save(table, buffer)
    write_atomic(path, buffer.getvalue(), "the circuit file")


def read(path: Path, level: Level | None = None) -> Importances:
    """Reads importances that MIB's code, or `write`, has written: of one level, or of all that the file has.

    Raises:
        UserError: no such file, another format, names that the graph has not, or scores that are not finite.
    """
    if path.suffix == ".pt":
        graph, scores = _read_pt(path)
    elif path.suffix == ".json":
        graph, scores = _read_json(path, level)
    else:
        raise UserError(f"{path}: MIB knows .json and .pt files")
    if level is not None and level not in scores:
        raise UserError(f"{path} has no scores of {level}s; it has scores of {' and '.join(scores)}s")
    scores = scores if level is None else {level: scores[level]}
    for level, values in scores.items():
        used = values[graph.edge_mask] if level == "edge" else values
        bad = int((~torch.isfinite(used)).sum())
        if bad:
            raise UserError(
                f"{path}: {bad} of {used.numel()} {level} scores are not finite (MIB writes NaN for what was not scored, and "
                "keeps it in every circuit); score them, or take another level"
            )
    return Importances(graph, scores)


_SIZES = {"n_layers": 1000, "n_heads": 1000, "d_model": 1_000_000}
"""No model has more; a file could say anything, and a graph is made of it."""
_MOST_NODES = 20_000
"""A table of all edges is made, nodes x readers: of Llama-3.1-405B's 16,255 nodes it has 800 million places."""


def _graph(config: object, path: Path) -> Graph:
    if not isinstance(config, Mapping) or not all(
        type(config.get(key)) is int and 0 < config[key] <= most for key, most in _SIZES.items()
    ):
        raise UserError(
            f"{path}: 'cfg' must hold n_layers, n_heads and d_model, whole numbers of the size that a model has; this is no "
            "circuit file of MIB"
        )
    if config.get("parallel_attn_mlp"):
        raise UserError(f"{path}: the model's attention and MLP are parallel; a Llama's are not")
    nodes = 1 + config["n_layers"] * (config["n_heads"] + 1)
    if nodes > _MOST_NODES:
        raise UserError(f"{path}: 'cfg' tells of {nodes:,} nodes; no model has more than {_MOST_NODES:,}")
    return Graph(config["n_layers"], config["n_heads"], config["d_model"])


def _read_json(path: Path, level: Level | None) -> tuple[Graph, dict[Level, Tensor]]:
    if path.is_dir():
        raise UserError(f"{path} is a folder; a circuit file of MIB is expected")
    table = read_json(path, "circuit file")
    graph = _graph(table.get("cfg"), path)
    nodes, edges = table.get("nodes"), table.get("edges")
    if not isinstance(nodes, dict) or not isinstance(edges, dict):
        raise UserError(f"{path}: 'nodes' and 'edges' must be tables; this is no circuit file of MIB")
    for given, known in ((nodes, {*graph.nodes, "logits"}), (edges, graph.edges if edges else ())):
        if unknown := given.keys() - known:
            raise UserError(f"{path}: '{min(unknown)}' is no node or edge of a model of {_size(graph)}")
    found: dict[Level, Tensor] = {}
    for each in LEVELS:
        try:
            scores = _scores_of(graph, nodes, edges, each)
        except (KeyError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            if level in (None, each):
                raise UserError(f"{path}: a score of {each}s is missing or no number ({error})") from None
            continue
        if scores is not None:
            found[each] = scores
    if not found:
        raise UserError(f"{path}: no level has a score for each of its items")
    return graph, found


def _scores_of(graph: Graph, nodes: dict[str, Any], edges: dict[str, Any], level: Level) -> Tensor | None:
    """Scores of a level; None where not each of its items has one, or all edges have 0."""
    if level == "edge":
        if not any(_number(edge["score"]) != 0 for edge in edges.values()):
            return None
        if absent := [name for name in graph.edges if name not in edges]:
            raise ValueError(f"{len(absent)} edges have none, the first of them '{absent[0]}'")
        values = torch.tensor([_number(edges[name]["score"]) for name in graph.edges])
        return torch.zeros(graph.shape("edge")).masked_scatter_(graph.edge_mask, values)
    key = "score" if level == "node" else "neurons_scores"
    if not all(key in nodes.get(name, {}) for name in graph.nodes):
        return None
    if level == "node":
        return torch.tensor([_number(nodes[name][key]) for name in graph.nodes])
    return torch.stack([_own(_numbers(nodes[name][key]), graph, i) for i, name in enumerate(graph.nodes)])


def _numbers(value: object) -> Tensor:
    _refuse_booleans(value)
    return torch.tensor(value)


def _refuse_booleans(value: object) -> None:
    """torch would read them as 0 and 1, even between numbers."""
    if isinstance(value, bool):
        raise TypeError("true and false are none")
    if isinstance(value, list):
        for each in value:
            _refuse_booleans(each)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{str(value)[:40]!r} is none")
    return float(value)


def _own(values: Tensor, graph: Graph, node: int) -> Tensor:
    """A node's scores [width]; MIB's code writes those of all heads of a layer, [heads, width], under each of them."""
    beside = graph.heads_beside(node)
    if beside is not None and tuple(values.shape) == (graph.heads, graph.width):
        values = values[beside.index(node)]
    if tuple(values.shape) != (graph.width,):
        raise ValueError(f"neurons_scores of {graph.nodes[node]} are {tuple(values.shape)}, not {(graph.width,)}")
    return values.float()


def _read_pt(path: Path) -> tuple[Graph, dict[Level, Tensor]]:
    try:
        table = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"circuit file {path} does not exist") from None
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is no file of plain tensors: {first_line(error)}") from None
    if not isinstance(table, dict) or not isinstance(table.get("edges_scores"), Tensor):
        raise UserError(f"{path}: a table with 'cfg' and 'edges_scores' is expected; this is no circuit file of MIB")
    graph = _graph(table.get("cfg"), path)
    levels: dict[Level, str] = {"node": "nodes_scores", "edge": "edges_scores", "neuron": "neurons_scores"}
    found: dict[Level, Tensor] = {}
    for level, key in levels.items():
        values = table.get(key)
        if values is None:
            continue
        _require_plain(path, key, values)
        if level == "edge" and not bool(values.any()):
            continue
        if tuple(values.shape) != graph.shape(level):
            raise UserError(f"{path}: {key} has shape {tuple(values.shape)}; {_size(graph)} have {graph.shape(level)}")
        found[level] = values.float()
    if not found:
        raise UserError(f"{path}: no level has scores")
    rows, columns = (
        _places(path, key, table.get(key), names)
        for key, names in (("src_nodes", graph.nodes), ("dst_nodes", graph.readers))
    )
    found = {level: scores[rows] for level, scores in found.items()}
    if "edge" in found:  # what stands where there is no edge means nothing
        found["edge"] = found["edge"][:, columns].where(graph.edge_mask, torch.zeros(()))
    return graph, found


def _require_plain(path: Path, key: str, values: object) -> None:
    if not isinstance(values, Tensor):
        raise UserError(f"{path}: {key} is a {type(values).__name__}, a tensor is expected")
    if values.layout != torch.strided or values.is_meta or values.is_complex() or values.is_quantized:
        raise UserError(f"{path}: {key} is no plain tensor of real numbers")
    if values.dtype is torch.bool:
        raise UserError(
            f"{path}: {key} holds true and false, not scores; those belong in {key.replace('scores', 'in_graph')}"
        )


def _places(path: Path, key: str, given: object, names: Sequence[str]) -> Tensor:
    """Where each of our names stands in the file's order; the same order where the file says none."""
    if given is None:
        return torch.arange(len(names))
    listed = [str(name) for name in given] if isinstance(given, list | tuple) else []
    if sorted(listed) != sorted(names):
        odd = next((name for name in listed if name not in names), None)
        fault = f"'{odd}' is none of this model's" if odd else f"{len(set(listed))} of {len(names)} names are there"
        raise UserError(f"{path}: {key} must name each once: {fault}")
    place = {name: i for i, name in enumerate(listed)}
    return torch.tensor([place[name] for name in names])


def _size(graph: Graph) -> str:
    return f"{graph.layers} layers, {graph.heads} heads and width {graph.width}"
