"""A shorter storm than `benchmarks/chaos.py --kills 100`: parts of a study are killed at random, and nothing of it is lost."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from chaos import chaos

from engine import engine_or_skip


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["local", pytest.param("docker", marks=pytest.mark.docker)])
def test_a_storm_of_kills_loses_nothing(runner: str, tmp_path: Path) -> None:
    if runner == "docker":
        engine_or_skip()
    tally, runs = chaos(tmp_path, runner, kills=5, seeds=1, seed=1)
    assert tally.faults == []
    assert sum(tally.killed.values()) == 5 and runs == 3
