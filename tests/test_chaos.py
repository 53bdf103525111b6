"""A shorter storm than `benchmarks/chaos.py --kills 100`: parts of a study are killed at random, and nothing of it is lost."""

import importlib.util
import sys
from pathlib import Path

import pytest

# By its path: with benchmarks/ on sys.path, benchmarks/cka.py would hide the library of that name.
_SPEC = importlib.util.spec_from_file_location("cdbench_chaos", Path(__file__).parents[1] / "benchmarks" / "chaos.py")
assert _SPEC and _SPEC.loader
storm = importlib.util.module_from_spec(_SPEC)
sys.modules["cdbench_chaos"] = storm  # dataclasses look for their module there
_SPEC.loader.exec_module(storm)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # what MLflow's client and sqlalchemy think of each other is not ours to mend
@pytest.mark.parametrize("runner", ["local", pytest.param("docker", marks=pytest.mark.docker)])
def test_a_storm_of_kills_loses_nothing(
    runner: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # its view is looked at, too
    if runner == "docker":
        request.getfixturevalue("image")
    tally, runs = storm.chaos(tmp_path, runner, kills=5, seeds=1, seed=1)
    assert tally.faults == []
    assert sum(tally.killed.values()) == 5 and runs == 3
