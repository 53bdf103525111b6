"""Draws docs/cka-bias.svg and writes its data: the CKA of unrelated features by number of samples.

    python docs/draw_cka_bias.py

Independent Gaussian features of the paper's widths, d = 2,048 and 4,096: whatever is above zero is bias.
"""

import csv
import math
from pathlib import Path

import matplotlib
import torch

from cdbench.seeds import generator_for
from cdbench.similarity import cka_matrices

matplotlib.use("svg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
WIDTHS = (2048, 4096)
SAMPLES = (8, 16, 32, 64, 128, 256, 512, 1000, 2000)
DRAWS = 12
BATCH, SPLIT = 32, 1000
"""The paper's training batch, and the held-out split."""


def measure() -> list[dict[str, float]]:
    """Mean and standard deviation of both estimators over independent pairs, by n."""
    rows = []
    for n in SAMPLES:
        draw = generator_for("docs", "cka-bias", n)
        pairs = [[torch.randn(n, d, generator=draw) for d in WIDTHS] for _ in range(DRAWS)]
        values = [cka_matrices([x], [y]) for x, y in pairs]
        biased, debiased = (torch.stack([value[k] for value in values]) for k in (0, 1))
        d1, d2 = WIDTHS
        rows.append(
            {
                "n": n,
                "biased": round(biased.mean().item(), 4),
                "biased_sd": round(biased.std().item(), 4),
                "debiased": round(debiased.mean().item(), 4) + 0.0,
                "debiased_sd": round(debiased.std().item(), 4),
                "biased_by_formula": round(math.sqrt(d1 * d2 / ((n + d1) * (n + d2))), 4),
            }
        )
    return rows


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """The picture: biased with its closed form, debiased with two standard deviations."""
    plt.rcParams.update(
        {"svg.hashsalt": "cdbench", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 10}
    )
    figure, axes = plt.subplots(figsize=(7.2, 3.9), layout="constrained")
    n = [row["n"] for row in rows]
    axes.plot(n, [row["biased"] for row in rows], "o-", color="#b3401f", label="biased (as in the paper's loss)")
    axes.plot(n, [row["biased_by_formula"] for row in rows], ":", color="#b3401f", label="√(d₁d₂ / ((n+d₁)(n+d₂)))")
    axes.errorbar(
        n,
        [row["debiased"] for row in rows],
        [2 * row["debiased_sd"] for row in rows],
        fmt="s-",
        color="#1f5fb3",
        capsize=3,
        label="debiased, ± 2 sd of one measurement",
    )
    for row in rows:
        if row["n"] in (BATCH, SPLIT):
            what = "the paper's batch" if row["n"] == BATCH else "our held-out split"
            axes.annotate(
                f"{row['biased']:.2f} at n = {row['n']:,.0f},\n{what}",
                (row["n"], row["biased"]),
                xytext=(0, -46),
                textcoords="offset points",
                ha="center",
                arrowprops={"arrowstyle": "-", "color": "#555"},
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(n, [f"{value:,.0f}" for value in n])
    axes.set_ylim(-0.5, 1.08)
    axes.axhline(0, color="#999", linewidth=0.8)
    axes.set_xlabel("samples n")
    axes.set_ylabel("linear CKA")
    axes.set_title("Unrelated features, d = 2,048 and 4,096: what stays above 0 is bias", loc="left", fontsize=11)
    axes.legend(loc="center left", bbox_to_anchor=(0.24, 0.5), frameon=False)
    figure.savefig(path, metadata={"Date": None, "Title": "CKA of unrelated features by number of samples"})
    plt.close(figure)


def main() -> None:
    torch.set_num_threads(1)
    rows = measure()
    with (HERE / "cka-bias.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    draw(rows, HERE / "cka-bias.svg")


if __name__ == "__main__":
    main()
