"""All layer pairs by ours and by the libraries people use: time, peak memory, error against float64. One thread, one run.

    pip install --no-deps -r benchmarks/requirements.txt     # the peers that the tests do not need
    python benchmarks/cka.py                                 # about 15 minutes; --quick leaves out what takes minutes
    python benchmarks/cka.py --memory ours 1000              # extra peak memory of one of them, in MB

Fast ones alternate, so that a noisy machine hits all of them, and the median counts; those that take minutes run once.
A peer gets its activations through its own public interface: a model whose layers hand out stored tensors.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before numpy and torch

import argparse
import importlib
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from machine import save
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cdbench.similarity import StreamingCKA, cka_matrices, linear_cka

# This file is called cka, and so is the module of pytorch-cka.
sys.path.remove(str(Path(__file__).parent))

Layers = list[Tensor]


def activations(n: int, count: int, width: int, seed: int, mean: float) -> Layers:
    """Layers that share 12 directions, with a mean of `mean` standard deviations in each feature."""
    draw = torch.Generator().manual_seed(seed)
    base = torch.randn(n, 12, generator=torch.Generator().manual_seed(99))
    layers = []
    for _ in range(count):
        shared = base @ torch.randn(12, width, generator=draw) / 12**0.5
        layers.append(shared + torch.randn(n, width, generator=draw) + mean * torch.randn(width, generator=draw))
    return layers


@dataclass(frozen=True)
class Size:
    """A comparison: student layers of one width with teacher layers of another."""

    n: int
    layers: tuple[int, int] = (16, 32)
    widths: tuple[int, int] = (2048, 4096)
    mean: float = 0.0
    rounds: int = 5
    slow: bool = True

    @property
    def name(self) -> str:
        a, b = self.layers
        mean = f", mean {self.mean:g}σ" if self.mean else ""
        return f"{a} x {b} layers, n = {self.n}, d = {self.widths[0]}/{self.widths[1]}{mean}"

    def data(self) -> tuple[Layers, Layers]:
        xs, ys = (activations(self.n, self.layers[k], self.widths[k], k + 1, self.mean) for k in (0, 1))
        return xs, ys


class Replay(nn.Module):
    """A model whose layers put out stored activations, for libraries that only take models."""

    def __init__(self, layers: Layers) -> None:
        super().__init__()
        self.stored = layers
        self.taps = nn.ModuleList(nn.Identity() for _ in layers)

    def forward(self, batch: Tensor) -> Tensor:
        for tap, value in zip(self.taps, self.stored, strict=True):
            tap(value)
        return batch

    def names(self) -> list[str]:
        return [f"taps.{i}" for i in range(len(self.stored))]


def _loader(n: int) -> Any:
    return DataLoader(TensorDataset(torch.zeros(n, 1), torch.zeros(n)), batch_size=n)


def ours(xs: Layers, ys: Layers) -> tuple[Tensor, Tensor]:
    """Both estimators."""
    return cka_matrices(xs, ys)


def products(xs: Layers, ys: Layers) -> None:
    """The symmetric products alone, which no Gram route can do without: NumPy sends them to BLAS syrk."""
    for layer in (*xs, *ys):
        array = layer.numpy()
        np.matmul(array, array.T)


def pytorch_cka(xs: Layers, ys: Layers) -> Any:
    return importlib.import_module("cka").cka_from_features(xs, ys)


def cka_pytorch(xs: Layers, ys: Layers) -> Any:
    from cka_pytorch import CKACalculator

    one, two = Replay(xs), Replay(ys)
    cpu = torch.device("cpu")
    with torch.no_grad():
        calculator = CKACalculator(one, two, one.names(), two.names(), device=cpu, verbose=False)
        return calculator.calculate_cka_matrix(_loader(len(xs[0])), num_epochs=1)


def torch_cka(xs: Layers, ys: Layers) -> Any:
    from torch_cka import CKA

    one, two = Replay(xs), Replay(ys)
    with torch.no_grad():
        comparison = CKA(one, two, "x", "y", one.names(), two.names())
        comparison.compare(_loader(len(xs[0])))
    return comparison.hsic_matrix


def ckatorch(xs: Layers, ys: Layers) -> Tensor:
    from ckatorch import cka_base

    return torch.stack([torch.stack([cka_base(x, y, "linear", unbiased=True) for y in ys]) for x in xs])


FAST: dict[str, Callable[[Layers, Layers], Any]] = {"ours": ours, "products": products, "pytorch-cka": pytorch_cka}
SLOW: dict[str, Callable[[Layers, Layers], Any]] = {
    "cka-pytorch": cka_pytorch,
    "torch_cka": torch_cka,
    "ckatorch": ckatorch,
}


def exact(xs: Layers, ys: Layers) -> tuple[Tensor, Tensor]:
    """Both estimators in float64 from H-centred and U-centred Grams, by NumPy: shares no code with anything timed."""

    def projected(layer: Tensor, debiased: bool) -> Any:
        x = layer.double().numpy()
        k = (x - x.mean(0)) @ (x - x.mean(0)).T
        if debiased:
            np.fill_diagonal(k, 0)
            n = len(k)
            m = k.sum(0) / (n - 2)
            m -= m.sum() / (2 * (n - 1))
            k -= m[:, None] + m[None]
            np.fill_diagonal(k, 0)
        return (k / np.linalg.norm(k)).ravel()

    found = []
    for debiased in (False, True):
        left, right = (np.stack([projected(layer, debiased) for layer in side]) for side in (xs, ys))
        found.append(torch.from_numpy(left @ right.T))
    return found[0], found[1]


def timed(call: Callable[[Layers, Layers], Any], xs: Layers, ys: Layers) -> tuple[float, Any]:
    with warnings.catch_warnings(), Path(os.devnull).open("w") as nothing, redirect_stderr(nothing):
        warnings.simplefilter("ignore")
        began = time.perf_counter()
        result = call(xs, ys)
        return time.perf_counter() - began, result


def compare(size: Size, quick: bool) -> dict[str, Any]:
    """Seconds, ratio to ours, largest error of each."""
    xs, ys = size.data()
    reference = exact(xs, ys)
    seconds: dict[str, list[float]] = {}
    errors: dict[str, float] = {}
    missing: dict[str, str] = {}
    contenders = {**FAST, **({} if quick or not size.slow else SLOW)}
    for name, call in list(contenders.items()):
        try:
            timed(call, [x[:8, :16] for x in xs[:2]], [y[:8, :16] for y in ys[:2]])  # imports
        except ImportError as error:
            missing[name] = f"absent ({error}): pip install --no-deps -r benchmarks/requirements.txt"
            del contenders[name]
    for turn in range(size.rounds + 1):
        for name, call in contenders.items():
            if turn and name in SLOW:
                continue
            took, result = timed(call, xs, ys)
            if turn or name in SLOW:  # the first round of the fast ones warms up
                seconds.setdefault(name, []).append(took)
            if name == "ours":
                errors["biased"] = float((result[0] - reference[0]).abs().max())
                result = result[1]
            if result is not None:  # the peers' own estimator is the debiased one
                errors[name] = float((result.double() - reference[1]).abs().max())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {
        name: {
            "seconds": round(value, 5),
            "times ours": round(value / medians["ours"], 2),
            "times the products": round(value / medians["products"], 2),
            **({"largest error": float(f"{errors[name]:.1e}")} if name in errors else {}),
            **({"largest error, biased": float(f"{errors['biased']:.1e}")} if name == "ours" else {}),
        }
        for name, value in medians.items()
    }
    return {**rows, **missing}


def memory(name: str, n: int) -> float:
    """Extra peak resident memory of one call, MB; in a process of its own.

    From /proc, not from getrusage: a child begins with its parent's peak there.
    """
    size = Size(n)
    xs, ys = size.data()
    call = {**FAST, **SLOW}[name]
    timed(call, [x[:8] for x in xs[:1]], [y[:8] for y in ys[:1]])  # imports
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = _status("VmRSS")
    timed(call, xs, ys)
    return (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    """A line of /proc/self/status, kB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[key].split()[0])


def memories(n: int, names: Sequence[str]) -> dict[str, Any]:
    size = Size(n)
    grams = sum(size.layers) * n * n * 4 / 2**20
    layer = n * max(size.widths) * 4 / 2**20
    found: dict[str, Any] = {"Grams, MB": round(grams, 1), "one layer, MB": round(layer, 1)}
    for name in names:
        command = [sys.executable, __file__, "--memory", name, str(n)]
        # Freed pages go back at once: those of making the data must not serve the call unseen.
        environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found[f"{name}, extra peak MB"] = float(done.stdout)
    return found


def streaming() -> dict[str, Any]:
    """The state after a few batches and after many; the time of a batch."""
    xs, ys = (activations(128, 4, d, s, 1.0) for d, s in ((512, 1), (768, 2)))
    stream = StreamingCKA()
    sizes = {}
    for batch in range(1, 65):
        stream.update(xs, ys)
        if batch in (1, 64):
            sizes[f"state after {batch} batches, MB"] = round(
                sum(v.numel() * v.element_size() for v in stream.state_dict().values()) / 2**20, 1
            )
    return sizes


def alignment() -> dict[str, Any]:
    """Eight pairs in a training step of Llama-3.2-1B's shape, on a GPU where there is one.

    On the CPU the model has 2 of its 16 layers and a small vocabulary: the alignment's share of the whole step is smaller still.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    layers, vocabulary = (16, 128_256) if device == "cuda" else (2, 8192)
    config = LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=layers, num_attention_heads=32, num_key_value_heads=8,
        vocab_size=vocabulary, tie_word_embeddings=True,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config).to(device)
    ids = torch.randint(0, vocabulary, (32, 12), generator=draw).to(device)
    teacher = [torch.randn(32, 4096, generator=draw).to(device) for _ in range(8)]

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    kept: dict[int, Tensor] = {}
    for i, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda module, args, out, i=i: kept.__setitem__(i, out[:, -1]))

    def step(aligned: bool) -> float:
        began = now()
        loss = model(input_ids=ids, labels=ids).loss
        if aligned:
            loss = loss + 0.01 * torch.stack([1 - linear_cka(kept[i % layers], y) for i, y in enumerate(teacher)]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return now() - began

    def term() -> float:
        xs = [kept[i % layers].detach().requires_grad_() for i in range(8)]
        began = now()
        torch.stack([1 - linear_cka(x, y) for x, y in zip(xs, teacher, strict=True)]).sum().backward()
        return now() - began

    step(True)
    plain, aligned = [], []
    for _ in range(5):
        plain.append(step(False))
        aligned.append(step(True))
    alone = statistics.median(term() for _ in range(20))
    base = statistics.median(plain)
    return {
        "device": f"{device}; {layers} of 16 layers, vocabulary {vocabulary:,} of 128,256",
        "step without, s": round(base, 3),
        "step with 8 pairs, s": round(statistics.median(aligned), 3),
        "eight pairs alone (forward and backward), s": round(alone, 4),
        "share of the step, %": round(100 * alone / base, 3),
    }


SIZES = (
    Size(1000, rounds=3),
    Size(1000, mean=3.0, rounds=3, slow=False),
    Size(32, rounds=60),
    Size(32, mean=3.0, rounds=60, slow=False),
    Size(128, rounds=15, slow=False),
    Size(4000, layers=(4, 6), widths=(96, 128), rounds=5, slow=False),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="without the peers that take minutes; writes no result")
    parser.add_argument("--memory", nargs=2, metavar=("NAME", "N"), help="extra peak memory of one of them, MB")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        print(round(memory(options.memory[0], int(options.memory[1])), 1))
        return
    result: dict[str, Any] = {}
    for size in SIZES:
        result[size.name] = compare(size, options.quick)
        print(size.name, json.dumps(result[size.name], indent=1), file=sys.stderr)
    there = [name for name, row in result[SIZES[0].name].items() if isinstance(row, dict) and name != "products"]
    result["peak memory, n = 1000"] = memories(1000, there)  # of those that are installed and were timed
    result["streaming"] = streaming()
    result["alignment loss"] = alignment()
    if options.quick:
        print(json.dumps(result, indent=1))
    else:
        save("cka", result)


if __name__ == "__main__":
    main()
