"""`cdbench circuit` from the command line: what a user sees, and what a user's mistakes are told."""

import json
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from cdbench.circuit_session import Studied
from cdbench.circuits import mib_data, saved
from cdbench.circuits.interchange import Interchanges
from cdbench.circuits.scores import single
from cdbench.cli import main
from cdbench.tokens import encode
from circuit_models import half_right
from conftest import Cli, World
from hub_cache import cached, cached_model

Command = Callable[..., Result]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Command]:
    """The command in this process, in a folder of its own: loading torch anew for each would take minutes."""
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    yield lambda *words: CliRunner().invoke(main, [str(word) for word in words])
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def args(world: World) -> list[str]:
    return ["--profile", str(world.profile_file), "--store", str(world.store)]


@pytest.fixture(scope="session")
def found(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A circuit of the trained teacher."""
    root = tmp_path_factory.mktemp("found")
    words = ["circuit", "discover", "teacher", "--profile", world.profile_file, "--store", world.store]
    done = CliRunner().invoke(main, [*map(str, words), "--out", str(root / "c"), "--runs", str(root / "runs")])
    assert done.exit_code == 0, done.stderr
    return root / "c"


def test_discover_shows_what_it_found_how_sure_and_how_exact(cli: Cli, args: list[str], tmp_path: Path) -> None:
    done = cli("circuit", "discover", "teacher", *args, "--top", "5", "-n", "100")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("teacher (3 layers of 4 heads, width 32) on addition_2digit: ")
    assert "against 'random' counterfactuals" in lines[0]
    assert "top 5 of 16 nodes" in done.stdout
    assert done.stdout.count("   exact ") == 5
    assert "attribution against exact patching on these: same sign" in done.stdout
    assert "stability of the ranking between halves of the problems: rank correlation" in done.stdout
    assert "stability of the ranking between 4 draws of the counterfactuals: rank correlation" in done.stdout
    folder = tmp_path / "runs" / "circuits" / "teacher-micro-addition_2digit-node-attribution-n100"
    assert lines[-1] == f"written to {folder}; next: cdbench circuit evaluate {folder}"
    table, scores = saved.read(folder)
    assert scores.rows.shape == (table.data.problems, 16)  # per-example scores are kept
    assert table.top[0].name in done.stdout


def test_two_searches_give_the_same_numbers_to_the_bit(command: Command, args: list[str], tmp_path: Path) -> None:
    for out in ("a", "b"):
        assert (
            command("circuit", "discover", "student", *args, "--level", "edge", "-n", "60", "--out", out).exit_code == 0
        )
    assert (tmp_path / "a" / saved.SCORES).read_bytes() == (tmp_path / "b" / saved.SCORES).read_bytes()
    assert (tmp_path / "a" / saved.CIRCUIT).read_text() == (tmp_path / "b" / saved.CIRCUIT).read_text()


def test_evaluate_shows_faithfulness_beside_its_baselines(command: Command, args: list[str], found: Path) -> None:
    told = command("circuit", "evaluate", found, *args[2:], "-n", "50")
    assert told.exit_code == 0, told.stderr
    assert told.stdout.splitlines()[0].startswith("teacher, nodes by attribution: ")
    assert "CPR" in told.stdout and "CMD" in told.stdout and "magnitude" in told.stdout and "random" in told.stdout
    table = json.loads(command("circuit", "evaluate", found, *args[2:], "-n", "50", "--json").stdout)
    assert (Path(table["folder"]), table["by"], table["level"], table["steps"]) == (found, "attribution", "node", 1)
    assert table["circuit"]["f"][-1] == pytest.approx(1, abs=1e-5)
    assert table["circuit"]["f"][0] == pytest.approx(0, abs=1e-5)
    assert table["circuit"]["nfs"] == table["circuit"]["f"]
    assert table["items"] == [0, 0, 0, 0, 0, 0, 1, 3, 8, 16]
    low, high = table["circuit"]["cpr_95"]
    assert low <= table["circuit"]["cpr"] <= high
    assert table["random"]["draws"] == 5


def test_evaluate_takes_the_training_problems_that_the_search_was_on(
    command: Command, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of those that were drawn had no counterfactual: as many must be drawn again, not as many as were kept."""
    words = ["--counterfactual", "tens_carry", "-n", "60", "--top", "1", "--draws", "0", "--out", "c"]
    assert command("circuit", "discover", "teacher", *args, *words).exit_code == 0
    told, asked, own = saved.read(tmp_path / "c")[0].data, {}, Studied.contrasts

    def contrasts(self: Studied, wanted: object, split: str, n: int, draw: int = 0):  # type: ignore[no-untyped-def]
        asked[split] = own(self, wanted, split, n, draw)  # type: ignore[arg-type]
        return asked[split]

    monkeypatch.setattr(Studied, "contrasts", contrasts)
    assert command("circuit", "evaluate", "c", *args[2:], "-n", "20", "--random", "1").exit_code == 0
    assert 60 == told.drawn > told.problems == len(asked["train"][0])
    assert asked["train"][1] == told


@pytest.mark.parametrize("ablation", ["mean", "mean-positional", "zero"])
def test_evaluate_by_other_ablations(command: Command, args: list[str], found: Path, ablation: str) -> None:
    told = command("circuit", "evaluate", found, *args[2:], "-n", "40", "--ablation", ablation, "--random", "1")
    assert told.exit_code == 0, told.stderr
    said = {
        "mean": "all else at its mean\n",
        "mean-positional": "all else at its mean at that place",
        "zero": "all else zero",
    }
    assert said[ablation] in told.stdout
    assert "less that of magnitude" in told.stdout and "95 % over the same problems" in told.stdout


@pytest.mark.parametrize("level", ["node", "edge", "neuron"])
@pytest.mark.parametrize("by", ["exact", "ablation"])
def test_discover_by_other_measures(
    command: Command, args: list[str], tmp_path: Path, by: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small a teacher solves few sums: let its answers be the right ones.
    monkeypatch.setattr(Studied, "encoded", lambda self, some: half_right(self.model, encode(self.tokenizer, some)))
    words = ["circuit", "discover", "teacher", *args, "--by", by, "--level", level, "-n", "20"]
    done = command(*words, "--top", "6", "--out", by)
    assert done.exit_code == 0, done.stderr
    assert {"exact": "exact patching: logit difference lost", "ablation": "accuracy lost"}[by] in done.stdout
    assert "attribution against exact patching on these: same sign" in done.stdout
    table, scores = saved.read(tmp_path / by)
    assert scores.level == level and scores.rows.any() and table.draws == 0
    for item in table.top:
        assert item.attribution is not None and item.exact is not None
        if by == "exact":
            assert item.score == pytest.approx(item.exact, rel=1e-4, abs=1e-5)
    told = command("circuit", "evaluate", by, *args[2:], "-n", "20", "--random", "1", "--json")
    assert told.exit_code == 0, told.stderr
    judged = json.loads(told.stdout)
    assert judged["circuit"]["f"][-1] == pytest.approx(1) and len(judged["circuit"]["f"]) == 10
    assert judged["model"]["content"] == table.model.content and judged["data"]["source"] == "task"
    assert command("circuit", "export", by, "--format", "mib").exit_code == 0


def test_what_solves_nothing_has_nothing_that_ablation_could_take(command: Command, args: list[str]) -> None:
    done = command("circuit", "discover", "teacher", *args, "--by", "ablation", "-n", "20")
    assert done.exit_code == 2
    assert "the model solves none of the 1" in done.stderr and "rank by attribution" in done.stderr


def test_the_student_of_a_run_has_a_circuit_of_its_own(
    cli: Cli, command: Command, args: list[str], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    assert cli("run", "finetune", *args).returncode == 0
    ids = {
        json.loads(p.read_text())["spec"]["method"]: p.parent.name
        for p in (tmp_path / "runs/records").glob("*/record.json")
    }
    contents = {}
    for name in (ids["finetune"], ids["teacher"], "teacher", "student"):
        done = command("circuit", "discover", name, *args, "-n", "30", "--out", f"c-{name}", "--json")
        assert done.exit_code == 0, done.stderr
        contents[name] = json.loads(done.stdout)["model"]["content"]
    assert contents[ids["teacher"]] == contents["teacher"]
    assert len(set(contents.values())) == 3
    done = command("circuit", "discover", ids["finetune"], *args, "--task", "subtraction_2digit")
    assert done.exit_code == 2 and "was made on task 'addition_2digit'; it is studied on no other" in done.stderr


def test_export_and_import_keep_every_score(command: Command, args: list[str], found: Path, tmp_path: Path) -> None:
    assert Path(command("circuit", "export", found, "--format", "mib").stdout.strip()) == found / "mib.json"
    for ending in ("json", "pt"):
        file = tmp_path / f"x.{ending}"
        assert command("circuit", "export", found, "--out", file, "--keep", "5").exit_code == 0
        done = command("circuit", "import", file, "--model", "teacher", *args, "--out", ending)
        assert done.exit_code == 0, done.stderr
        back, own = saved.read(tmp_path / ending)[1], saved.read(found)[1]
        torch.testing.assert_close(back.mean.float(), own.mean.float(), rtol=0, atol=1e-6)
        told = command("circuit", "evaluate", tmp_path / ending, *args[2:], "-n", "30", "--json")
        assert told.exit_code == 0, told.stderr


@pytest.mark.parametrize("level", ["node", "edge", "neuron"])
def test_a_circuit_is_drawn(command: Command, args: list[str], tmp_path: Path, level: str) -> None:
    words = ["circuit", "discover", "teacher", *args, "--level", level, "-n", "20", "--draws", "0", "--out", "c"]
    assert command(*words).exit_code == 0
    done = command("circuit", "draw", "c", "--keep", "5", "--out", "graph.svg", "--json")
    assert done.exit_code == 0, done.stderr
    told, (made, scores) = json.loads(done.stdout), saved.read(tmp_path / "c")
    graph, text = made.model.graph, (tmp_path / "graph.svg").read_text()
    assert text.startswith("<svg") and "currentColor" not in text and told["kept"] == 5
    if level == "edge":
        sizes = dict(zip(graph.edges, scores.mean[graph.edge_mask].abs().tolist(), strict=True))
        strongest = sorted(sizes, key=lambda edge: -sizes[edge])[:5]
        assert {*told["nodes"], "logits"} >= {end.partition("<")[0] for edge in strongest for end in edge.split("->")}
    elif level == "node":
        assert {graph.nodes[i] for i in scores.mean.argsort(descending=True)[:5].tolist()} == set(told["nodes"])
    assert command("circuit", "draw", "c").exit_code == 0 and (tmp_path / "c" / "circuit.svg").is_file()
    for keep in ("0", "100000"):
        refused = command("circuit", "draw", "c", "--keep", keep)
        assert refused.exit_code == 2 and f"--keep {keep}: a circuit of 1 to" in refused.stderr
    refused = command("circuit", "draw", "c", "--out", "graph.png")
    assert refused.exit_code == 2 and "the drawing is an .svg file" in refused.stderr


def test_edges_of_score_0_are_not_drawn(command: Command, args: list[str], tmp_path: Path) -> None:
    words = ["circuit", "discover", "teacher", *args, "--level", "edge", "-n", "20", "--draws", "0", "--out", "c"]
    assert command(*words).exit_code == 0
    made, scores = saved.read(tmp_path / "c")
    sparse = torch.zeros_like(scores.mean, dtype=torch.float32)
    sparse[0, -1] = 1.0  # from the input to the logits
    saved.write(tmp_path / "c", made.model_dump(exclude={"scores"}), single("edge", sparse))
    done = command("circuit", "draw", "c", "--keep", "5", "--json")
    assert (
        done.exit_code == 0 and json.loads(done.stdout)["nodes"] == ["input"] and json.loads(done.stdout)["kept"] == 1
    )
    assert "4 of the top 5 edges have score 0 and are left out" in command("circuit", "draw", "c", "--keep", "5").stderr


def test_one_pair_of_problems_is_too_few_to_choose_a_node_on(
    command: Command, args: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Interchanges.__len__
    monkeypatch.setattr(Interchanges, "__len__", lambda self: min(1, own(self)))
    done = command("circuit", "interchange", "teacher", *args, "-n", "90", "--all")
    assert done.exit_code == 2 and "one pair of problems differs in ones_carry" in done.stderr


def test_faithfulness_is_drawn(command: Command, args: list[str], found: Path, tmp_path: Path) -> None:
    told = command("circuit", "evaluate", found, *args[2:], "-n", "40", "--random", "1", "--out", "f.svg")
    assert told.exit_code == 0, told.stderr
    assert told.stdout.rstrip().endswith("drawn in f.svg")
    text = (tmp_path / "f.svg").read_text()
    assert text.startswith("<svg") and all(
        f">{name}<" in text for name in ("circuit", "magnitude", "random", "kept, %")
    )


def test_interchange_names_the_node_that_carries_a_variable(command: Command, args: list[str]) -> None:
    done = command(
        "circuit", "interchange", "teacher", *args, "-n", "90", "--variable", "ones_op1", "--top", "3", "--all"
    )
    assert done.exit_code == 0, done.stderr
    assert "for example " in done.stdout and "with the ones_op1 of" in done.stdout
    accuracy, control = done.stdout.splitlines()[-2:]
    assert accuracy.startswith("interchange accuracy") and "the median node has" in accuracy
    assert control.startswith("control") and "of a source of the same ones_op1" in control
    assert "chosen on" in accuracy or "no node gives the expected answer" in accuracy
    table = json.loads(command("circuit", "interchange", "teacher", *args, "-n", "90", "--json", "--all").stdout)
    assert table["chosen"]["n"] == table["problems"] // 2
    assert set(table["nodes"]) == {"input", *(f"a{i}.h{j}" for i in range(3) for j in range(4)), "m0", "m1", "m2"}
    assert table["accuracy"]["n"] == table["judged_on"] == table["problems"] - table["problems"] // 2
    assert 0 < table["control"]["n"] <= 90
    assert table["not_solved"] is None  # with --all nobody asks
    nodes = [found["value"] for found in table["nodes"].values()]
    assert nodes == sorted(nodes, reverse=True)
    assert nodes[-1] - 1e-6 <= table["median_node"] <= nodes[0] + 1e-6


def test_attention_tells_what_heads_look_at_and_draws_it(
    command: Command, args: list[str], found: Path, tmp_path: Path
) -> None:
    done = command("circuit", "attention", found, *args[2:], "--heads", "2", "--out", "heads.svg")
    assert done.exit_code == 0, done.stderr
    assert "op1 tens | op1 ones | + | op2 tens | op2 ones | =" in done.stdout
    assert "from the last token, '='" in done.stdout
    assert "op2 tens" in (tmp_path / "heads.svg").read_text()
    table = json.loads(command("circuit", "attention", found, *args[2:], "--json").stdout)
    for weights in table["heads"].values():
        assert torch.tensor(weights).sum(1) == pytest.approx(torch.ones(6))
        assert torch.tensor(weights).triu(1).abs().max() == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["discover", "nobody"], "no model 'nobody': write teacher, student, the id of a run"),
        (["discover", "meta-llama/Llama@main"], "owner/name[@revision] on the hub (40 hex digits)"),
        (["discover", "0123456789abcdef"], "0123456789abcdef"),
        (["discover", "teacher", "--task", "nothing"], "nothing"),
        (["discover", "teacher", "--data", "mib-generated"], "no token for some of"),
        (["discover", "teacher", "--wordings", "all"], "only MIB's data on the hub ask a problem in several wordings"),
        (
            ["discover", "teacher", "--data", "mib", "--wordings", "all", "--by", "ablation"],
            "accuracies are of single prompts",
        ),
        (["discover", "./my-lama"], "./my-lama is neither a folder nor a name that a model can have on the hub"),
        (["discover", "../x@" + "ab" * 20], "../x is neither a folder nor a name that a model can have on the hub"),
        (["discover", "teacher", "--revision", "main"], "--revision main: only MIB's data on the hub have one"),
        (["discover", "teacher", "--by", "exact", "--steps", "3"], "--by exact has no steps"),
        (
            ["discover", "teacher", "--by", "ablation", "--draws", "2"],
            "--draws 2: mean ablation ranks without counterfactuals",
        ),
        (
            ["discover", "teacher", "--data", "mib-generated", "--draws", "1"],
            "MIB's problems come with their counterfactuals",
        ),
        (["discover", "teacher", "--top", "0"], "--top"),
        (["discover", "teacher", "--top", "17"], "--top 17: the model has 16 nodes"),
        (["discover", "teacher", "--problems", "0"], "--problems"),
        (["interchange", "teacher", "--top", "17"], "--top 17: the model has 16 nodes"),
        (["interchange", "teacher", "--variable", "hundreds"], "hundreds"),
        (["import", "none.json", "--model", "teacher"], "does not exist"),
    ],
)
def test_wrong_input_is_one_sentence_and_exit_code_2(
    command: Command, args: list[str], words: list[str], told: str
) -> None:
    done = command("circuit", *words, *args)
    assert done.exit_code == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_mibs_data_that_are_not_there_are_named_with_exit_code_4(
    command: Command, args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    done = command("circuit", "discover", "teacher", *args, "--data", "mib")
    assert done.exit_code == 4, done.stderr
    assert "hf download mib-bench/arithmetic_addition" in done.stderr
    done = command("circuit", "discover", "teacher", *args, "--data", "mib-subtraction")
    assert done.exit_code == 4, done.stderr
    assert "at the commit that begins with 6b39e17" in done.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["export", "FOUND", "--out", "x.json", "--keep", "0"], "--keep 0: a circuit of 1 to 16 nodes can be marked"),
        (["export", "FOUND", "--out", "x.json", "--keep", "17"], "--keep 17: a circuit of 1 to 16 nodes"),
        (["export", "FOUND", "--out", "x.csv"], ".json and .pt files"),
        (["export", "nothing", "--out", "x.json"], "nothing is no circuit"),
        (["export", "FOUND", "--out", "FOUND/circuit.json"], "is the circuit itself"),
        (["attention", "FOUND", "--out", "x.png"], ".svg file"),
    ],
)
def test_circuits_that_cannot_be_used_are_told(
    command: Command, args: list[str], found: Path, words: list[str], told: str
) -> None:
    where = args[2:] if words[0] == "attention" else []
    done = command("circuit", *[word.replace("FOUND", str(found)) for word in words], *where)
    assert done.exit_code == 2, done.stderr
    assert told in done.stderr
    saved.read(found)


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    """A Llama that reads words, a token a byte, as a folder in Hugging Face format."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokens = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokens.pre_tokenizer, tokens.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=None, eos_token_id=1, **shape)
        )
    for made in (model, tokenizer):
        made.save_pretrained(tmp_path / "reader")
    return tmp_path / "reader"


def test_mibs_own_files_are_read_and_what_is_dropped_is_said(
    command: Command, args: list[str], reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of ten subtractions one has a counterfactual of another length, one none, one the same answer. Each is asked twice, as
    MIB's are six times, and counts once."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    rows, commit = list(mib_data.generate(Random(0), 10, op="-")), "ab" * 20

    def other(row: int, x: int, y: int) -> None:
        prompt = f"The difference between {x} and {y} is "
        rows[row]["random_counterfactual"] = {"prompt": prompt, "label": x - y, "operand1": x, "operand2": y}

    for i, row in enumerate(rows):
        other(i, row["operand1"] + (1 if row["operand1"] % 10 < 9 else -1), row["operand2"])
    other(0, 9, 4)
    rows[1]["random_counterfactual"] = None
    other(
        2,
        *next((a, b) for a in range(20, 99) for b in [a - int(rows[2]["label"])] if b > 9 and a != rows[2]["operand1"]),
    )
    again = [json.loads(json.dumps(row).replace("The difference", "And the difference")) for row in rows]
    text = "".join(json.dumps(row) + "\n" for pair in zip(rows, again, strict=True) for row in pair)
    cached(tmp_path / "cache", "mib-bench/arithmetic_subtraction", commit, {"train.jsonl": text, "test.jsonl": text})
    words = ["--data", "mib-subtraction", "--revision", commit]
    done = command("circuit", "discover", reader, *args, *words, "--out", "c")
    assert done.exit_code == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "on MIB's subtractions: 7 problems" in first
    assert "(dropped: 2 have no such counterfactual of the same layout; 1 have the same answer)" in first
    made, _ = saved.read(tmp_path / "c")
    assert (made.data.revision, made.data.without_counterfactual, made.data.without_contrast) == (commit, 2, 1)
    done = command("circuit", "evaluate", "c", *args[2:])  # at the commit that the circuit was found on
    assert done.exit_code == 0, done.stderr
    assert "7 held-out problems of MIB's subtractions" in done.stdout
    # All wordings: fourteen prompts are seven problems, whose two wordings are one row.
    done = command("circuit", "discover", reader, *args, *words, "--wordings", "all")
    assert done.exit_code == 0, done.stderr
    first = done.stdout.splitlines()[0]
    assert "on MIB's subtractions: 7 problems in 14 of 20 prompts against" in first
    assert "(dropped: 2 have no such counterfactual of the same layout; 1 have the same answer)" in first
    every = done.stdout.splitlines()[-1].split()[2].rstrip(";")
    assert every.endswith("mib-subtraction-node-attribution-all-wordings-abababab")
    found, scores = saved.read(tmp_path / every)
    assert (found.data.problems, found.data.prompts, found.data.drawn, len(scores.rows)) == (7, 14, 10, 7)
    done = command("circuit", "evaluate", every, *args[2:], "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["problems"], told["data"]["prompts"], told["prompts_drawn"]) == (7, 14, 20)
    assert command("circuit", "evaluate", every, *args[2:], "--ablation", "mean").exit_code == 0
    done = command("circuit", "evaluate", every, *args[2:], "--ablation", "mean-positional")
    assert done.exit_code == 2 and "a place means something in one wording" in done.stderr
    done = command("circuit", "attention", every, *args[2:], "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["of"] == 9  # of prompts one by one: each problem in one wording
    assert command("circuit", "export", every, "--format", "mib").exit_code == 0
    words += ["--model", str(reader), "--wordings", "all", "--out", "again"]
    done = command("circuit", "import", tmp_path / every / "mib.json", "--format", "mib", *words, *args)
    assert done.exit_code == 0, done.stderr
    done = command("circuit", "evaluate", "again", *args[2:])
    assert done.exit_code == 0, done.stderr
    assert "7 held-out problems of MIB's subtractions in 14 of 20 prompts (dropped" in done.stdout


def test_both_operations_can_be_made_in_mibs_schema(command: Command, args: list[str], reader: Path) -> None:
    for source, told in (("mib-generated", "additions"), ("mib-generated-subtraction", "subtractions")):
        done = command("circuit", "discover", reader, *args, "--data", source, "-n", "20", "--out", source)
        assert done.exit_code == 0, done.stderr
        assert f"on {told} in MIB's words" in done.stdout
        done = command("circuit", "interchange", reader, *args, "--data", source, "-n", "20", "--all")
        assert done.exit_code == 0, done.stderr
        assert f"on --data {source}: 20 of 20 held-out problems, " in done.stdout
        assert " with the ones_carry of “" in done.stdout.splitlines()[1]


def copied(found: Path, tmp_path: Path, **changes: object) -> Path:
    folder = tmp_path / "copy"
    shutil.copytree(found, folder)
    table = json.loads((folder / saved.CIRCUIT).read_text())
    (folder / saved.CIRCUIT).write_text(json.dumps(table | changes))
    return folder


def test_a_circuit_of_another_model_is_refused(command: Command, args: list[str], found: Path, tmp_path: Path) -> None:
    model = json.loads((found / saved.CIRCUIT).read_text())["model"]
    other = copied(found, tmp_path, model=model | {"content": "0" * 16})
    done = command("circuit", "evaluate", other, *args[2:])
    assert done.exit_code == 2
    assert "the circuit is of another model: 'teacher' was 000000000000 when it was found" in done.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"layers": 0}, "layers"),
        ({"heads": -1}, "heads"),
        ({"heads": 8, "layers": 1}, "holds rows of shape"),
    ],
)
def test_a_circuit_of_impossible_size_is_refused(
    command: Command, args: list[str], found: Path, tmp_path: Path, change: dict[str, int], told: str
) -> None:
    model = json.loads((found / saved.CIRCUIT).read_text())["model"]
    done = command("circuit", "evaluate", copied(found, tmp_path, model=model | change), *args[2:])
    assert done.exit_code == 2
    assert told in done.stderr and "Traceback" not in done.stderr


def test_a_circuit_whose_size_is_not_its_models_is_refused(
    command: Command, args: list[str], found: Path, tmp_path: Path
) -> None:
    """As many nodes as the model has, laid out otherwise: 3 layers of 4 heads, or 5 of 2."""
    model = json.loads((found / saved.CIRCUIT).read_text())["model"]
    assert 1 + model["layers"] * (model["heads"] + 1) == 16 == 1 + 5 * (2 + 1)
    done = command("circuit", "evaluate", copied(found, tmp_path, model=model | {"layers": 5, "heads": 2}), *args[2:])
    assert done.exit_code == 2
    assert "is of another model: 5 layers, 2 heads, width 32; 'teacher' has 3, 4, 32" in done.stderr


@pytest.mark.parametrize("sizes", [torch.zeros(40), torch.ones(40, 2), torch.ones(3)])
def test_sizes_that_are_none_are_refused(found: Path, tmp_path: Path, sizes: torch.Tensor) -> None:
    from cdbench.errors import UserError
    from cdbench.files import sha256

    folder = copied(found, tmp_path)
    tensors = load_file(folder / saved.SCORES)
    save_file({"rows": tensors["rows"][:40].clone(), "sizes": sizes}, folder / saved.SCORES)
    table = json.loads((folder / saved.CIRCUIT).read_text())
    (folder / saved.CIRCUIT).write_text(json.dumps(table | {"scores": sha256(folder / saved.SCORES)}))
    with pytest.raises(UserError, match="sizes must say of how many prompts, 1 or more, each of the 40 rows"):
        saved.read(folder)


def test_an_import_overwrites_no_other_circuit(command: Command, args: list[str], found: Path, tmp_path: Path) -> None:
    assert command("circuit", "export", found, "--out", "mine.json").exit_code == 0
    words = ["circuit", "import", "mine.json", "--model", "teacher", *args]
    for _ in range(2):  # the same again loses nothing
        done = command(*words)
        assert done.exit_code == 0, done.stderr
    table = json.loads((tmp_path / "mine.json").read_text())
    first = next(iter(table["nodes"]))
    table["nodes"][first]["score"] += 1.0
    (tmp_path / "mine.json").write_text(json.dumps(table))
    refused = command(*words)
    assert refused.exit_code == 2
    assert "circuits/mine holds another circuit, which would be lost: name another folder with --out" in refused.stderr
    assert command(*words, "--out", "another").exit_code == 0
    (tmp_path / "another" / "scores.safetensors").write_bytes(b"cut short")
    damaged = command(*words, "--out", "another")
    assert damaged.exit_code == 2 and "name another folder with --out" in damaged.stderr


def test_an_imported_file_of_another_model_is_refused(
    command: Command, args: list[str], found: Path, tmp_path: Path
) -> None:
    assert command("circuit", "export", found, "--out", "x.json").exit_code == 0
    done = command("circuit", "import", "x.json", "--model", "student", *args)
    assert done.exit_code == 2
    assert "x.json is of another model: 3 layers, 4 heads, width 32; 'student' has 2, 4, 32" in done.stderr


def test_scores_that_were_altered_or_are_no_numbers_are_refused(
    command: Command, args: list[str], found: Path, tmp_path: Path
) -> None:
    from cdbench.files import sha256

    folder = copied(found, tmp_path)
    tensors = load_file(folder / saved.SCORES)
    tensors["rows"][3, 2] = float("nan")
    save_file(tensors, folder / saved.SCORES)
    done = command("circuit", "evaluate", folder, *args[2:])
    assert done.exit_code == 2 and "is not the file that circuit.json names" in done.stderr
    table = json.loads((folder / saved.CIRCUIT).read_text())
    (folder / saved.CIRCUIT).write_text(json.dumps(table | {"scores": sha256(folder / saved.SCORES)}))
    done = command("circuit", "evaluate", folder, *args[2:])
    assert done.exit_code == 2 and "scores are NaN or infinite" in done.stderr


def test_a_folder_in_hugging_face_format_is_a_model(
    command: Command, args: list[str], world: World, tmp_path: Path
) -> None:
    folder = world.workspace(build=False).teacher.folder
    done = command("circuit", "discover", folder, *args, "-n", "30", "--out", "c", "--json")
    assert done.exit_code == 0, done.stderr
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["GPT2LMHeadModel"]}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    done = command("circuit", "discover", "./other", *args)
    assert done.exit_code == 2
    assert "the hooks know LlamaForCausalLM only" in done.stderr


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.pop("model.layers.1.mlp.up_proj.weight"), "lack model.layers.1.mlp.up_proj.weight;"),
        (
            lambda state: [state.pop(k) for k in list(state) if "layers.1." in k],
            "lack model.layers.1.input_layernorm.weight and 8",
        ),
        (
            lambda state: state.update({"model.layers.7.extra": torch.ones(2)}),
            "hold, with no place in the model, model.layers.7",
        ),
    ],
)
def test_a_checkpoint_with_missing_or_left_over_tensors_is_refused(
    command: Command,
    args: list[str],
    world: World,
    tmp_path: Path,
    change: Callable[[dict[str, torch.Tensor]], object],
    told: str,
) -> None:
    shutil.copytree(world.workspace(build=False).teacher.folder, tmp_path / "part")
    state = load_file(tmp_path / "part" / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "part" / "model.safetensors", {"format": "pt"})
    done = command("circuit", "discover", "./part", *args)
    assert done.exit_code == 2 and "Traceback" not in done.stderr
    assert told in done.stderr and "no whole checkpoint" in done.stderr


def test_a_checkpoint_with_a_damaged_tokenizer_or_no_layers_is_refused(
    command: Command, args: list[str], world: World, tmp_path: Path
) -> None:
    shutil.copytree(world.workspace(build=False).teacher.folder, tmp_path / "part")
    kept = (tmp_path / "part" / "tokenizer.json").read_text()
    (tmp_path / "part" / "tokenizer.json").write_text(kept[: len(kept) // 2])
    done = command("circuit", "discover", "./part", *args)
    assert done.exit_code == 2 and "Traceback" not in done.stderr
    assert "no tokenizer can be loaded from" in done.stderr
    (tmp_path / "part" / "tokenizer.json").write_text(kept)
    config = json.loads((tmp_path / "part" / "config.json").read_text())
    (tmp_path / "part" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 0}))
    state = load_file(tmp_path / "part" / "model.safetensors")
    state = {name: value for name, value in state.items() if ".layers." not in name}
    save_file(state, tmp_path / "part" / "model.safetensors", {"format": "pt"})
    done = command("circuit", "discover", "./part", *args)
    assert done.exit_code == 2 and "the model has no layers" in done.stderr


def test_another_search_does_not_replace_the_first(command: Command, args: list[str], tmp_path: Path) -> None:
    searches = {
        "node-attribution": ["--top", "1"],
        "node-attribution-n30": ["-n", "30"],
        "node-attribution-n30-0draws": ["-n", "30", "--draws", "0"],
        "node-attribution-ones_op1": ["--counterfactual", "ones_op1"],
        "node-attribution-2steps": ["--steps", "2"],
        "edge-attribution": ["--level", "edge"],
    }
    for words in searches.values():
        assert command("circuit", "discover", "student", *args, *words).exit_code == 0
    names = {path.name for path in (tmp_path / "runs" / "circuits").iterdir()}
    assert names == {f"student-micro-addition_2digit-{name}" for name in searches}


def test_a_run_whose_student_is_gone_is_not_taken_for_the_untrained_one(
    cli: Cli, command: Command, args: list[str], tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    assert cli("run", "finetune", *args).returncode == 0
    weights = next((tmp_path / "runs" / "records").glob("*/student.safetensors"))
    weights.unlink()
    done = command("circuit", "discover", weights.parent.name, *args, "-n", "30")
    assert done.exit_code == 2
    assert "student.safetensors is missing or was altered since its record was written" in done.stderr


def test_a_folder_named_from_here_is_found_from_elsewhere(
    command: Command, args: list[str], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(world.workspace(build=False).teacher.folder, tmp_path / "ml")
    assert command("circuit", "discover", "./ml", *args, "-n", "30", "--out", "c").exit_code == 0
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    done = command("circuit", "evaluate", tmp_path / "c", *args[2:], "-n", "20")
    assert done.exit_code == 0, done.stderr


def test_a_profile_for_a_gpu_says_what_is_missing_without_one(
    command: Command, args: list[str], world: World, tmp_path: Path
) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    profile = tmp_path / "gpu.toml"
    profile.write_text(world.profile_file.read_text().replace('device = "cpu"', 'device = "cuda"'))
    done = command("circuit", "discover", "teacher", "--profile", profile, *args[2:])
    assert done.exit_code == 4
    assert "a CUDA GPU" in done.stderr


def test_a_tokenizer_without_an_end_of_text_is_refused(
    command: Command, args: list[str], world: World, tmp_path: Path
) -> None:
    folder = tmp_path / "ml"
    shutil.copytree(world.workspace(build=False).teacher.folder, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    done = command("circuit", "discover", folder, *args, "-n", "30")
    assert done.exit_code == 2
    assert "no end-of-text token" in done.stderr


def test_too_few_problems_have_no_interval(command: Command, args: list[str]) -> None:
    done = command("circuit", "discover", "teacher", *args, "-n", "3", "--top", "2", "--json")
    assert done.exit_code == 0, done.stderr
    table = json.loads(done.stdout)
    assert table["top"][0]["low"] is None and table["stability"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_missed_and_nothing_else_of_the_profile(
    command: Command, args: list[str], reader: Path
) -> None:
    """A model of one's own needs no model of the profile, and as much memory as it needs."""
    for words, told in (
        (["--device", "cuda"], "--device cuda needs a CUDA GPU: none is visible"),
        (["--profile", "paper"], "profile paper needs a CUDA GPU: none is visible"),
    ):
        done = command("circuit", "discover", reader, *args, "--data", "mib-generated", *words)
        assert done.exit_code == 4
        assert told in done.stderr
    done = command(
        "circuit", "discover", reader, *args, "--profile", "paper", "--device", "cpu", "--data", "mib-generated",
        "-n", "8", "--top", "1", "--out", "own",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    assert command("circuit", "evaluate", "own", "--device", "cuda").exit_code == 4


def test_a_run_is_studied_under_its_own_profile(cli: Cli, args: list[str], tmp_path: Path, world: World) -> None:
    assert cli("run", "base", *args).returncode == 0
    run_id = next(p.name for p in (tmp_path / "runs" / "records").glob("*") if (p / "record.json").exists())
    where = [word for word in args if word not in ("--profile", str(world.profile_file))]
    refused = cli("circuit", "discover", run_id, *where, "--profile", "smoke")
    assert refused.returncode == 2 and "was made under profile 'micro'" in refused.stderr
    done = cli("circuit", "discover", run_id, *where, "-n", "20", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["profile"] == "micro"


def test_a_model_of_the_hub_is_found_by_its_name_and_kept_by_its_commit(
    command: Command, args: list[str], reader: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    words, commit = ["--data", "mib-generated", "-n", "20", "--out", "c"], "cd" * 20
    done = command("circuit", "discover", "some-one/some-llama", *args, *words)
    assert done.exit_code == 4, done.stderr
    assert "hf download some-one/some-llama" in done.stderr and "Traceback" not in done.stderr
    folder = cached_model(tmp_path / "cache", "some-one/some-llama", commit, reader)
    done = command("circuit", "discover", "some-one/some-llama", *args, *words)
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"some-one/some-llama@{commit} (2 layers of 2 heads, width 16)")
    found = [saved.read(tmp_path / "c")[1].rows]
    for name in (f"some-one/some-llama@{commit}", str(reader)):
        assert command("circuit", "discover", name, *args, *words).exit_code == 0
        found.append(saved.read(tmp_path / "c")[1].rows)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    # Main moves on; a circuit stays that of its commit.
    assert command("circuit", "discover", "some-one/some-llama", *args, *words).exit_code == 0
    (folder.parents[1] / "refs" / "main").write_text("ef" * 20)
    done = command("circuit", "evaluate", "c", *args[2:], "-n", "10")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.startswith(f"some-one/some-llama@{commit}, nodes by attribution")


def test_a_model_with_weights_that_are_not_finite_is_refused(command: Command, args: list[str], reader: Path) -> None:
    weights = load_file(reader / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, reader / "model.safetensors", metadata={"format": "pt"})
    for words in (["discover"], ["interchange", "--all"]):
        done = command("circuit", words[0], reader, *args, "--data", "mib-generated", "-n", "10", *words[1:])
        assert done.exit_code == 2, done.stderr
        assert "model.layers.0.mlp.up_proj.weight has values that are not finite" in done.stderr


def test_a_variable_that_no_problem_has_is_said_to_be_that(command: Command, args: list[str], reader: Path) -> None:
    """MIB's rows have no counterfactual for it either; that is not what is missing."""
    words = ["--data", "mib-generated-subtraction", "--variable", "tens_carry", "-n", "20", "--all"]
    done = command("circuit", "interchange", reader, *args, *words)
    assert done.exit_code == 2, done.stderr
    assert "no two of 20 problems differ in 'tens_carry'" in done.stderr
