"""A shorter storm than `benchmarks/chaos.py --kills 100`: parts of a study are killed at random, and nothing of it is lost."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

from chaos import chaos


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what MLflow's client and sqlalchemy think of each other is not ours to mend
@pytest.mark.parametrize("runner", ["local", pytest.param("docker", marks=pytest.mark.docker)])
def test_a_storm_of_kills_loses_nothing(runner: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if runner == "docker":
        request.getfixturevalue("image")
    tally, runs = chaos(tmp_path, runner, kills=5, seeds=1, seed=1)
    assert tally.faults == []
    assert sum(tally.killed.values()) == 5 and runs == 3
