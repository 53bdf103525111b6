"""Edge attribution by EAP-IG's own package, whose code runs on CUDA alone: here on the CPU, for `circuits.py`.

The package (`eap`, in `src/` of a clone of github.com/hannamw/EAP-IG) is copied, and in the copy `device='cuda'` is `'cpu'`;
nothing else in its files is changed. `make oracles` installs TransformerLens, whose names of version 4 it is given.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from machine import alternately
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from cdbench.circuits.attribution import attribute
from cdbench.circuits.contrasts import Contrasts
from cdbench.circuits.graph import Graph
from cdbench.files import sha256

START = 1


def missing(checkout: Path) -> str:
    """What the comparison lacks, and how to get it; empty if nothing."""
    if not find_spec("transformer_lens"):
        return "TransformerLens is not installed: make oracles, then PYTHONPATH=.oracles"
    if not (checkout / "eap" / "attribute.py").is_file():
        return f"{checkout} holds no package 'eap'; clone github.com/hannamw/EAP-IG and name its src folder"
    return ""


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


def words(vocabulary: int) -> PreTrainedTokenizerFast:
    """A word a token, "t7" token 7: the package takes text, and the benchmark's prompts are random tokens."""
    known = {"<pad>": 0, "<s>": START, "<unk>": 2, **{f"t{i}": i for i in range(3, vocabulary)}}
    raw = Tokenizer(WordLevel(known, unk_token="<unk>"))
    raw.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", unk_token="<unk>")
    made.padding_side, made.add_bos_token = "right", True
    made.init_kwargs["name_or_path"] = "words"  # TransformerLens asks for all three
    return made


def bridged(model: LlamaForCausalLM) -> Any:
    """The model as TransformerLens 4 has it, with the hooks that the package asks for."""
    from transformer_lens.model_bridge import TransformerBridge

    bridge: Any = TransformerBridge.boot_transformers(
        "meta-llama/Llama-3.2-1B",  # names the architecture; nothing is loaded from there
        hf_model=deepcopy(model),
        tokenizer=words(model.config.vocab_size),
        device="cpu",
    )
    for switch in (bridge.set_use_split_qkv_input, bridge.set_use_attn_result, bridge.set_use_hook_mlp_in):
        switch(True)
    bridge.cfg.ungroup_grouped_query_attention = True  # asked for; with as many keys as queries nothing is grouped
    return bridge


def texts(ids: Tensor) -> list[str]:
    """Prompts without the start of text, which the package puts before each."""
    return [" ".join(f"t{i}" for i in row[1:]) for row in ids.tolist()]


def theirs(bridge: Any, pairs: Contrasts, steps: int) -> Callable[[], Tensor]:
    """Scores of all edges by the package, [sources, readers]."""
    from eap.attribute import attribute as attributed  # type: ignore[import-not-found]
    from eap.graph import Graph as Drawn  # type: ignore[import-not-found]

    rows = [(texts(pairs.clean), texts(pairs.corrupt), list(range(len(pairs))))]
    drawn = Drawn.from_model(bridge)
    how = {"method": "EAP"} if steps == 1 else {"method": "EAP-IG-inputs", "ig_steps": steps}

    def loss(logits: Tensor, _: Tensor, lengths: Tensor, label: Any) -> Tensor:
        """It takes what is to become small, and divides by the number of problems itself."""
        return -pairs.difference(logits[torch.arange(len(label)), lengths - 1]).sum()

    def scores() -> Tensor:
        bridge.zero_grad(set_to_none=True)
        attributed(bridge, drawn, rows, loss, quiet=True, **how)
        found: Tensor = drawn.scores.clone()
        return found

    return scores


def compared(ways: dict[str, Callable[[], Tensor]], graph: Graph, repeats: int) -> dict[str, Any]:
    """Median seconds in turns, how much faster ours is, and how far theirs lies from ours."""
    seconds, found = alternately(ways, repeats)
    one, other = (found[name][graph.edge_mask].double() for name in ("EAP-IG", "closed form"))
    ranks = torch.stack([one.argsort().argsort(), other.argsort().argsort()]).double()
    return {
        **seconds,
        "times_faster": seconds["EAP-IG"] / seconds["closed form"],
        "largest_difference": float((one - other).abs().max()),
        "largest_score": float(other.abs().max()),
        "spearman": float(torch.corrcoef(ranks)[0, 1]),
    }


def measured(checkout: Path, model: LlamaForCausalLM, pairs: Contrasts, repeats: int) -> dict[str, Any]:
    """One gradient (EAP) and five (EAP-IG), the package and ours in turns. Prompts begin with the start of text."""
    clean, corrupt = pairs.clean.clone(), pairs.corrupt.clone()
    clean[:, 0] = corrupt[:, 0] = START
    pairs, graph = replace(pairs, clean=clean, corrupt=corrupt), Graph.of(model)
    with tempfile.TemporaryDirectory() as folder:
        hashes = package(checkout, Path(folder))
        bridge = bridged(model)
        found = {
            "one gradient": {
                "EAP-IG": theirs(bridge, pairs, 1),
                "closed form": lambda: attribute(model, pairs, "edge").mean,
            },
            "five gradients": {
                "EAP-IG": theirs(bridge, pairs, 5),
                "closed form": lambda: attribute(model, pairs, "edge", steps=5).mean,
            },
        }
        return {
            "edges": len(graph.edges),
            "problems": len(pairs),
            "transformer_lens": metadata.version("transformer-lens"),
            "package": hashes,
            **{name: compared(ways, graph, repeats) for name, ways in found.items()},
        }
