"""Edge attribution against EAP-IG's own package, whose code runs on CUDA alone: here on the CPU, in one run.

    PYTHONPATH=.oracles python benchmarks/eap_ig.py CHECKOUT [--repeats 9]

CHECKOUT is a folder that holds its package `eap` (`src/` of a clone of github.com/hannamw/EAP-IG). It is copied, and in the
copy `device='cuda'` is `'cpu'`; nothing else in its files is changed. `make oracles` installs TransformerLens, whose names of
version 4 it is given. Model and prompts are those of `benchmarks/circuits.py`, but for the first token, which it makes the start
of text. Agreement is the largest difference of any edge's score, as a share of the largest score.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from circuits import VOCABULARY, alternately, bridged, contrasts, lens_edges, llama
from machine import save
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from cdbench.circuits.attribution import attribute
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.graph import Graph
from cdbench.files import sha256

START = 1


def package(checkout: Path, folder: Path) -> dict[str, str]:
    """Copies `eap`, to run on the CPU, and puts it and TransformerLens's new names where it looks; returns its files' SHA-256."""
    import transformer_lens
    import transformer_lens.utilities
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    shutil.copytree(checkout / "eap", folder / "eap", ignore=shutil.ignore_patterns("__pycache__"))
    hashes = {}
    for path in sorted((folder / "eap").glob("*.py")):
        hashes[path.name] = sha256(path)
        path.write_text(path.read_text().replace("device='cuda'", "device='cpu'"))
    names: Any = transformer_lens
    names.HookedTransformer, names.HookedTransformerConfig = TransformerBridge, TransformerBridgeConfig
    sys.modules["transformer_lens.utils"] = transformer_lens.utilities
    sys.path.insert(0, str(folder))
    return hashes


def words() -> PreTrainedTokenizerFast:
    """A word a token, "t7" token 7: the package takes text, and the benchmark's prompts are random tokens."""
    vocabulary = {"<pad>": 0, "<s>": START, "<unk>": 2, **{f"t{i}": i for i in range(3, VOCABULARY)}}
    raw = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")
    made.padding_side, made.add_bos_token = "right", True
    made.init_kwargs["name_or_path"] = "words"  # TransformerLens asks for all three
    return made


def texts(ids: Tensor) -> list[str]:
    """Prompts without the start of text, which the package puts before each."""
    return [" ".join(f"t{i}" for i in row[1:]) for row in ids.tolist()]


def sides(pairs: Contrasts, bridge: Any, graph: Graph, model: Any, steps: int) -> dict[str, Callable[[], Tensor]]:
    """The package, our stand-in for it (`circuits.lens_edges`) and ours."""
    from eap.attribute import attribute as theirs  # type: ignore[import-not-found]
    from eap.graph import Graph as TheirGraph  # type: ignore[import-not-found]

    rows = [(texts(pairs.clean), texts(pairs.corrupt), list(range(len(pairs))))]
    drawn = TheirGraph.from_model(bridge)
    how = {"method": "EAP"} if steps == 1 else {"method": "EAP-IG-inputs", "ig_steps": steps}

    def loss(logits: Tensor, _: Tensor, lengths: Tensor, label: Any) -> Tensor:
        """It takes what is to become small, and divides by the number of problems itself."""
        return -pairs.difference(logits[torch.arange(len(label)), lengths - 1]).sum()

    def package_s() -> Tensor:
        bridge.zero_grad(set_to_none=True)
        bridge.requires_grad_(True)  # as they are there; EAP itself has nothing else that asks for a gradient
        theirs(bridge, drawn, rows, loss, quiet=True, **how)
        scores: Tensor = drawn.scores.clone()
        return scores

    def stand_in() -> Tensor:
        bridge.requires_grad_(False)
        return lens_edges(bridge, pairs, graph, steps)

    return {
        "EAP-IG": package_s,
        "stand-in": stand_in,
        "closed form": lambda: attribute(model, pairs, "edge", steps=steps).mean,
    }


def measured(ways: dict[str, Callable[[], Tensor]], graph: Graph, repeats: int) -> dict[str, Any]:
    """Median seconds in turns, how much faster ours is, and how far theirs lies from ours."""
    seconds, found = alternately(ways, repeats)
    one, other = (found[name][graph.edge_mask].double() for name in ("EAP-IG", "closed form"))
    ranks = torch.stack([one.argsort().argsort(), other.argsort().argsort()]).double()
    return {
        "seconds": seconds,
        "times_faster": seconds["EAP-IG"] / seconds["closed form"],
        "times_faster_than_the_stand_in": seconds["stand-in"] / seconds["closed form"],
        "largest_difference_of_largest_score": float((one - other).abs().max() / other.abs().max()),
        "spearman": float(torch.corrcoef(ranks)[0, 1]),
    }


def main() -> None:
    """Measures one gradient (EAP) and five (EAP-IG), and writes results/eap_ig.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="the folder in which `eap` lies")
    parser.add_argument("--repeats", type=int, default=9)
    given = parser.parse_args()
    if not (given.checkout / "eap" / "attribute.py").is_file():
        parser.error(
            f"{given.checkout} holds no package 'eap'; clone github.com/hannamw/EAP-IG and name its src folder"
        )
    torch.set_num_threads(1)
    model, pairs = llama(12, 8, 256, shared=1), contrasts(64)
    clean, corrupt = pairs.clean.clone(), pairs.corrupt.clone()
    clean[:, 0] = corrupt[:, 0] = START
    pairs, graph = replace(pairs, clean=clean, corrupt=corrupt), Graph.of(model)
    with tempfile.TemporaryDirectory() as folder:
        hashes = package(given.checkout, Path(folder))
        bridge = bridged(model, words())
        bridge.cfg.ungroup_grouped_query_attention = True  # asked for; with as many keys as queries nothing is grouped
        result = {
            "edges": len(graph.edges),
            "problems": len(pairs),
            "transformer_lens": metadata.version("transformer-lens"),
            "eap": hashes,
            **{
                name: measured(sides(pairs, bridge, graph, model, steps), graph, given.repeats)
                for name, steps in (("EAP", 1), ("EAP-IG, 5 steps", 5))
            },
        }
    save("eap_ig", result)


if __name__ == "__main__":
    main()
