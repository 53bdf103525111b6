"""MIB's files in and out, and its data: real rows are on the hub, here the schema and the way to them."""

import json
import os
from pathlib import Path
from random import Random

import pytest
import torch

from cdbench.circuits import mib, mib_data
from cdbench.circuits.arithmetic import KINDS, Operator, carry
from cdbench.circuits.graph import LEVELS, Graph, Level, top
from cdbench.errors import EnvironmentLacks, UserError
from hub_cache import cached

GRAPH = Graph(layers=2, heads=2, width=4)


def scores_of(level: Level) -> torch.Tensor:
    values = torch.randn(GRAPH.shape(level), generator=torch.Generator().manual_seed(0))
    return values * GRAPH.edge_mask if level == "edge" else values


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ending", [".json", ".pt"])
def test_what_is_written_is_read_again(tmp_path: Path, level: Level, ending: str) -> None:
    path, scores = tmp_path / f"importances{ending}", scores_of(level)
    mib.write(path, GRAPH, level, scores, top(scores, 3, GRAPH, level))
    found = mib.read(path)
    assert found.graph == GRAPH
    assert list(found.scores) == [level]
    torch.testing.assert_close(found.scores[level], scores, rtol=0, atol=1e-7)


def test_the_json_file_has_what_mibs_reader_asks_for(tmp_path: Path) -> None:
    """EAP-IG's `Graph.from_json`: cfg, nodes with in_graph and score, edges by name with score and in_graph."""
    scores = scores_of("edge")
    mib.write(tmp_path / "x.json", GRAPH, "edge", scores, top(scores, 30, GRAPH, "edge", absolute=True))
    table = json.loads((tmp_path / "x.json").read_text())
    assert table["cfg"] == {"n_layers": 2, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 4}
    assert list(table["nodes"]) == ["input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits"]
    assert len(table["edges"]) == 46
    assert table["edges"]["m0->a1.h1<k>"]["score"] == pytest.approx(scores[3, GRAPH.readers.index("a1.h1<k>")].item())
    assert 0 < sum(edge["in_graph"] for edge in table["edges"].values()) <= 30


def test_the_pt_file_has_what_mibs_reader_asks_for(tmp_path: Path) -> None:
    """EAP-IG's `Graph.from_pt`: these keys, scores [n_forward, n_backward]."""
    mib.write(tmp_path / "x.pt", GRAPH, "neuron", scores_of("neuron"), top(scores_of("neuron"), 9, GRAPH, "neuron"))
    table = torch.load(tmp_path / "x.pt", weights_only=True)
    assert {"cfg", "src_nodes", "dst_nodes", "edges_scores", "edges_in_graph", "nodes_in_graph"} <= set(table)
    assert table["edges_scores"].shape == table["edges_in_graph"].shape == (7, 15)
    assert table["dst_nodes"][-1] == "logits"
    assert table["neurons_scores"].shape == (7, 4)
    assert int(table["neurons_in_graph"].sum()) == 9


THEIRS = Path(__file__).parent / "data" / "mib"
"""Written by EAP-IG's own `graph.py` from the scores in expected.json: to_pt and, of edges, to_json of hannamw/EAP-IG at 8fd10d9;
to_json of nodes and neurons, which breaks there, of the fork jasonshaoshun/dfa-circuits at d048d07. All heads' neurons of a layer
stand under each of its heads there."""


def expected_of(level: Level) -> torch.Tensor:
    told = json.loads((THEIRS / "expected.json").read_text())[f"{level}s"]
    values = torch.tensor(
        [told[name] for name in GRAPH.names(level)] if level != "neuron" else [told[n] for n in GRAPH.nodes]
    )
    return torch.zeros(GRAPH.shape("edge")).masked_scatter_(GRAPH.edge_mask, values) if level == "edge" else values


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("ending", [".json", ".pt"])
def test_files_that_eap_igs_own_code_wrote_are_read(level: Level, ending: str) -> None:
    one, every = (mib.read(THEIRS / f"{name}{ending}") for name in (f"{level}s", "all"))
    assert one.graph == every.graph == GRAPH
    assert torch.equal(one.scores[level], expected_of(level)) and list(one.scores) == [level]
    assert set(every.scores) == set(LEVELS)
    assert torch.equal(every.scores[level], expected_of(level))


def test_neurons_are_written_as_eap_igs_own_code_has_them(tmp_path: Path) -> None:
    """Its reader gives each head of a layer the block that stands under it; one head's scores alone it gives to all."""
    chosen = top(expected_of("neuron"), 13, GRAPH, "neuron", absolute=True)
    mib.write(tmp_path / "x.json", GRAPH, "neuron", expected_of("neuron"), chosen)
    ours, theirs = (json.loads(path.read_text())["nodes"] for path in (tmp_path / "x.json", THEIRS / "neurons.json"))
    for name in GRAPH.nodes:
        assert ours[name] == {key: theirs[name][key] for key in ours[name]}, name


def test_a_level_that_cannot_be_read_does_not_hide_another(tmp_path: Path) -> None:
    table = json.loads((THEIRS / "all.json").read_text())
    table["nodes"]["m1"]["neurons_scores"] = [1.0]
    (tmp_path / "x.json").write_text(json.dumps(table))
    assert torch.equal(mib.read(tmp_path / "x.json", "edge").scores["edge"], expected_of("edge"))
    for level in (None, "neuron"):
        with pytest.raises(UserError, match=r"neurons_scores of m1 are \(1,\), not \(4,\)"):
            mib.read(tmp_path / "x.json", level)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("cfg"), "'cfg' must hold n_layers"),
        (lambda t: t["cfg"].update(parallel_attn_mlp=True), "parallel"),
        (lambda t: t["nodes"].update({"a9.h0": {"in_graph": True}}), "'a9.h0' is no node"),
        (lambda t: t["edges"].update({"m1->m0": {"score": 1.0}}), "'m1->m0' is no node or edge"),
        (lambda t: t["nodes"]["m0"].update(score=float("nan")), "1 of 7 node scores are not finite"),
        (lambda t: t["nodes"]["m0"].update(score="high"), "no number"),
        (lambda t: t["nodes"]["m0"].update(score=10**400), "a score of nodes is missing or no number"),
        (lambda t: t.update(nodes=[]), "must be tables"),
        (lambda t: t["nodes"]["m0"].pop("score"), "no level has a score for each"),
        (lambda t: t["cfg"].update(n_layers=1000, n_heads=1000), "1,001,001 nodes; no model has more than 20,000"),
        (lambda t: t["nodes"]["m0"].update(score=True), "a score of nodes is missing or no number"),
        (
            lambda t: [node.update(neurons_scores=[True] * 4) for node in t["nodes"].values()],
            "a score of neurons is missing or no number",
        ),
    ],
)
def test_a_damaged_json_file_is_an_error_that_names_the_fault(tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "x.json"
    mib.write(path, GRAPH, "node", scores_of("node"))
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match=words):
        mib.read(path)


class Trap:
    """A pickle that would run something."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"cfg": {}}, "'edges_scores' is expected"),
        ({"edges_scores": torch.ones(7, 15), "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 4}, "nodes_scores": torch.ones(6)},
         r"nodes_scores has shape \(6,\)"),
        ({"edges_scores": torch.zeros(7, 15), "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 4}}, "no level has scores"),
        ({"edges_scores": [1.0], "cfg": {}}, "'edges_scores' is expected"),
        ({"edges_scores": torch.ones(7, 15), "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 4}, "nodes_scores": [1.0]},
         "nodes_scores is a list"),
        ({"edges_scores": torch.ones(7, 15).to_sparse(), "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 4}}, "no plain tensor"),
        ({"edges_scores": torch.ones(7, 15) * 1j, "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 4}}, "no plain tensor of real"),
        ({"edges_scores": torch.ones(7, 15, device="meta"), "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 4}}, "no plain"),
        ({"edges_scores": torch.ones(7, 15).bool(), "cfg": {"n_layers": 2, "n_heads": 2, "d_model": 4}},
         "edges_scores holds true and false, not scores; those belong in edges_in_graph"),
        (Trap(), "no file of plain tensors"),
    ],
)  # fmt: skip
def test_a_damaged_pt_file_is_an_error_and_runs_nothing(
    tmp_path: Path, monkeypatch, content: object, words: str
) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(UserError, match=words):
        mib.read(tmp_path / "x.pt")
    assert not (tmp_path / "trapped").exists()


def test_text_called_pt_and_a_folder_called_json_are_errors(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_text("importances")
    (tmp_path / "x.json").mkdir()
    with pytest.raises(UserError, match="no file of plain tensors"):
        mib.read(tmp_path / "x.pt")
    with pytest.raises(UserError, match="is a folder"):
        mib.read(tmp_path / "x.json")


@pytest.mark.parametrize("name", ["none.json", "none.pt", "x.csv"])
def test_a_missing_file_or_another_format_is_an_error(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"does not exist|\.json and \.pt"):
        mib.read(tmp_path / name)
    with pytest.raises(UserError, match=r"\.json and \.pt"):
        mib.write(tmp_path / "x.csv", GRAPH, "node", scores_of("node"))


FIELDS = {"idx", "template", "prompt", "label", "operator", "num_digit", "operand1", "operand2"}


def test_generated_rows_have_mibs_schema_and_all_seven_counterfactuals() -> None:
    rows = list(mib_data.generate(Random(0), 50))
    assert rows == list(mib_data.generate(Random(0), 50))
    for i, row in enumerate(rows):
        assert set(row) == FIELDS | {f"{kind}_counterfactual" for kind in KINDS}
        a, b = row["operand1"], row["operand2"]
        assert (row["idx"], row["operator"], row["num_digit"], row["label"]) == (i, "+", 2, str(a + b))
        assert row["prompt"] == f"The sum of {a} and {b} is "
        other = row["ones_carry_counterfactual"]
        assert other["label"] == other["operand1"] + other["operand2"]
        assert other["label"] % 10 == (a + b) % 10
        assert carry(other["operand1"], other["operand2"], "+", 0) != carry(a, b, "+", 0)
        assert row["tens_op2_counterfactual"]["operand1"] == a


def test_generated_differences_are_not_negative_and_borrow_as_sums_carry() -> None:
    for row in mib_data.generate(Random(0), 50, op="-"):
        a, b, other = row["operand1"], row["operand2"], row["ones_carry_counterfactual"]
        assert (row["operator"], row["label"]) == ("-", str(a - b))
        assert row["prompt"] == f"The difference between {a} and {b} is "
        labels = {kind: (row[f"{kind}_counterfactual"] or {}).get("label") for kind in KINDS}
        assert labels.pop("tens_carry") is None  # it would make the difference negative
        assert min(int(row["label"]), *labels.values()) >= 0
        assert other["label"] == other["operand1"] - other["operand2"]
        assert carry(other["operand1"], other["operand2"], "-", 0) != carry(a, b, "-", 0)


def test_rows_become_pairs_of_one_kind() -> None:
    rows = list(mib_data.generate(Random(0), 5))
    for row, (clean, other) in zip(rows, mib_data.pairs_of(iter(rows), "tens_carry")[0], strict=True):
        assert (clean.prompt, clean.answer) == (row["prompt"], row["label"])
        assert other.answer == str(row["tens_carry_counterfactual"]["label"])  # MIB has a number here, and text above
    with pytest.raises(UserError, match="row 0 of the MIB data lacks"):
        mib_data.pairs_of(iter([{"prompt": "x"}]), "random")
    nothing = rows[0] | {"ones_op1_counterfactual": None}
    assert mib_data.pairs_of(iter([nothing, rows[1]]), "ones_op1")[1] == 1
    with pytest.raises(UserError, match="row 1 of the MIB data does not fit"):
        mib_data.pairs_of(iter([rows[0], rows[1] | {"operand1": "many"}]), "random")


def test_generated_splits_share_no_problem_and_no_twin() -> None:
    sides = []
    for split in ("train", "test"):
        rows = mib_data.generate(Random(0), 300, split)
        sides.append([tuple(sorted((row["operand1"], row["operand2"]))) for row in rows])
    assert [len(set(side)) for side in sides] == [300, 300]
    assert not set(sides[0]) & set(sides[1])


@pytest.mark.parametrize("op", ["+", "-"])
def test_more_rows_than_there_are_problems_end_where_these_do(op: Operator) -> None:
    """90 · 91 / 2 unordered pairs of two-digit numbers."""
    rows = [row for split in ("train", "test") for row in mib_data.generate(Random(0), 10_000, split, op)]
    problems = {tuple(sorted((row["operand1"], row["operand2"]))) for row in rows}
    assert len(problems) == len(rows)
    assert 2500 < len(rows) <= 4095  # some have no counterfactual of some kind


def test_one_level_of_a_file_can_be_read_where_another_was_not_scored(tmp_path: Path) -> None:
    """EAP-IG begins with NaN for nodes that nobody scored; the edges of such a file are good."""
    mib.write(tmp_path / "x.pt", GRAPH, "edge", scores_of("edge"))
    table = torch.load(tmp_path / "x.pt", weights_only=True)
    torch.save(table | {"nodes_scores": torch.full((7,), torch.nan)}, tmp_path / "x.pt")
    assert list(mib.read(tmp_path / "x.pt", "edge").scores) == ["edge"]
    with pytest.raises(UserError, match="7 of 7 node scores are not finite"):
        mib.read(tmp_path / "x.pt")
    with pytest.raises(UserError, match="has no scores of neurons; it has scores of node"):
        mib.read(tmp_path / "x.pt", "neuron")
    torch.save(table | {"nodes_scores": None}, tmp_path / "x.pt")
    assert list(mib.read(tmp_path / "x.pt").scores) == ["edge"]


def test_the_edges_of_a_node_circuit_are_marked(tmp_path: Path) -> None:
    scores = scores_of("node")
    circuit = top(scores, 3, GRAPH, "node")
    mib.write(tmp_path / "x.pt", GRAPH, "node", scores, circuit)
    marked = torch.load(tmp_path / "x.pt", weights_only=True)["edges_in_graph"]
    assert torch.equal(marked, GRAPH.edge_mask & circuit.nodes[:, None])


ADDITION, SUBTRACTION = mib_data.PUBLISHED["mib"], mib_data.PUBLISHED["mib-subtraction"]
COMMIT = "0" * 39 + "1"


def lines(rows: list[dict[str, object]]) -> str:
    """A file as MIB's repositories have one for each split."""
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty Hugging Face cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    return tmp_path


def test_data_that_are_not_in_the_cache_are_named_with_the_command_that_fetches_them(hub: Path) -> None:
    with pytest.raises(
        EnvironmentLacks, match="hf download mib-bench/arithmetic_addition --repo-type dataset --revision d56d68b7"
    ):
        next(mib_data.load(ADDITION, "train"))
    with pytest.raises(EnvironmentLacks, match=f"hf download mib-bench/arithmetic_subtraction .* --revision {COMMIT}"):
        next(mib_data.load(SUBTRACTION, "train", COMMIT))


def test_the_hubs_data_are_read_at_the_pinned_commit(hub: Path) -> None:
    rows = list(mib_data.generate(Random(1), 6))
    assert ADDITION.revision
    cached(hub, ADDITION.repo, ADDITION.revision, {"train.jsonl": lines(rows)})
    assert mib_data.pairs_of(mib_data.load(ADDITION, "train"), "ones_op1") == mib_data.pairs_of(iter(rows), "ones_op1")
    with pytest.raises(UserError, match="has no split 'test'; it has train"):
        next(mib_data.load(ADDITION, "test"))


def test_data_are_read_at_the_commit_that_is_said_or_at_the_one_that_begins_as_the_pinned_one(hub: Path) -> None:
    rows = list(mib_data.generate(Random(1), 6, op="-"))
    cached(hub, SUBTRACTION.repo, COMMIT, {"train.jsonl": lines(rows[:3])})
    assert list(mib_data.load(SUBTRACTION, "train", COMMIT)) == rows[:3]
    with pytest.raises(
        EnvironmentLacks, match="begins with 6b39e17.* are not in the .* take all 40 digits from https://"
    ):
        next(mib_data.load(SUBTRACTION, "train"))
    pinned = SUBTRACTION.revision.ljust(40, "0")
    cached(hub, SUBTRACTION.repo, pinned, {"train.jsonl": lines(rows)})
    assert SUBTRACTION.at(None) == pinned
    assert list(mib_data.load(SUBTRACTION, "train")) == rows
    cached(hub, SUBTRACTION.repo, SUBTRACTION.revision.ljust(40, "1"), {"train.jsonl": lines(rows)})
    with pytest.raises(EnvironmentLacks, match="begins with 6b39e17"):  # which of the two it is, nobody can tell
        next(mib_data.load(SUBTRACTION, "train"))
    with pytest.raises(UserError, match="--revision main: a commit of mib-bench/arithmetic_subtraction is expected"):
        next(mib_data.load(SUBTRACTION, "train", "main"))


@pytest.mark.parametrize(("line", "told"), [("{", "line 2: no JSON"), ("[1]", "line 2: a list, a table is expected")])
def test_a_line_that_is_no_row_is_named(hub: Path, line: str, told: str) -> None:
    cached(hub, SUBTRACTION.repo, COMMIT, {"train.jsonl": f"{{}}\n{line}\n"})
    with pytest.raises(UserError, match=told):
        list(mib_data.load(SUBTRACTION, "train", COMMIT))


@pytest.mark.parametrize(
    ("key", "size"), [("n_layers", 30_000_000), ("n_heads", 0), ("n_layers", True), ("d_model", -4)]
)
def test_a_file_of_no_models_size_is_refused_at_once(tmp_path: Path, key: str, size: object) -> None:
    path = tmp_path / "x.json"
    mib.write(path, GRAPH, "node", scores_of("node"))
    table = json.loads(path.read_text())
    table["cfg"][key] = size
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match="whole numbers of the size that a model has"):
        mib.read(path)


@pytest.mark.parametrize("score", [True, "0.5"])
def test_a_score_that_is_no_number_is_none(tmp_path: Path, score: object) -> None:
    path = tmp_path / "x.json"
    mib.write(path, GRAPH, "node", scores_of("node"))
    table = json.loads(path.read_text())
    table["nodes"]["m0"]["score"] = score
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match="a score of nodes is missing or no number"):
        mib.read(path, "node")


@pytest.mark.parametrize("place", [0, -1])
def test_true_between_numbers_is_no_score(tmp_path: Path, place: int) -> None:
    path = tmp_path / "x.json"
    mib.write(path, GRAPH, "neuron", scores_of("neuron"))
    table = json.loads(path.read_text())
    scores = table["nodes"]["m0"]["neurons_scores"]
    scores[place] = True
    path.write_text(json.dumps(table))
    with pytest.raises(UserError, match="neurons is missing or no number"):
        mib.read(path, "neuron")


def test_a_file_of_a_large_model_is_read_in_seconds(tmp_path: Path) -> None:
    """386,713 edges: whatever is done for each of them must not take as many steps again, or this does not end."""
    graph, path = Graph(16, 32, 8), tmp_path / "x.json"
    scores = torch.zeros(graph.shape("edge"))
    scores[0, 0] = 1.0
    mib.write(path, graph, "edge", scores)
    assert torch.equal(mib.read(path).scores["edge"], scores)


def test_a_pt_files_rows_and_columns_go_by_the_names_that_it_gives(tmp_path: Path) -> None:
    path, scores = tmp_path / "x.pt", scores_of("edge")
    mib.write(path, GRAPH, "edge", scores, top(scores, 3, GRAPH, "edge"))
    table = torch.load(path, weights_only=True)
    rows, columns = torch.randperm(len(GRAPH.nodes)), torch.randperm(len(GRAPH.readers))
    table["src_nodes"] = [table["src_nodes"][i] for i in rows]
    table["dst_nodes"] = [table["dst_nodes"][i] for i in columns]
    table["edges_scores"] = table["edges_scores"][rows][:, columns]
    torch.save(table, path)
    assert torch.equal(mib.read(path).scores["edge"], scores)
    torch.save(table | {"src_nodes": ["a9.h0", *table["src_nodes"][1:]]}, path)
    with pytest.raises(UserError, match="src_nodes must name each once: 'a9.h0' is none of this model's"):
        mib.read(path)


@pytest.mark.parametrize("junk", [float("nan"), 5.0])
def test_what_a_pt_file_holds_where_there_is_no_edge_means_nothing(tmp_path: Path, junk: float) -> None:
    path, scores = tmp_path / "x.pt", scores_of("edge")
    mib.write(path, GRAPH, "edge", scores, top(scores, 3, GRAPH, "edge"))
    table = torch.load(path, weights_only=True)
    table["edges_scores"] = table["edges_scores"].masked_fill(~GRAPH.edge_mask, junk)
    torch.save(table, path)
    assert torch.equal(mib.read(path).scores["edge"], scores)
