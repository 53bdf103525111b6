"""--runner ray on a cluster of two nodes, --runner slurm on a real slurmctld with two slurmd; both lose a node in mid-study."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cdbench.containers.images import Image
from conftest import Cli, World
from engine import bootstrapped, engine_or_skip
from test_containers import WAITS, until

HERE = Path(__file__).parent
pytestmark = [pytest.mark.docker, pytest.mark.slow]
SLURM_IMAGE = "cdbench-test/slurm:bookworm"
SLURM_UP = """
set -e
host=$(hostname -s)
mkdir -p /run/munge /var/spool/slurmctld /var/spool/slurmd-n1 /var/spool/slurmd-n2 /var/log/slurm
[ -s /etc/munge/munge.key ] || dd if=/dev/urandom of=/etc/munge/munge.key bs=1 count=1024 2>/dev/null
chown -R munge: /run/munge /etc/munge /var/log/munge /var/lib/munge
chmod 400 /etc/munge/munge.key
chmod 755 /run/munge
su -s /bin/sh munge -c /usr/sbin/munged
cat > /etc/slurm/slurm.conf <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=/var/spool/slurmctld
SlurmdSpoolDir=/var/spool/slurmd-%n
SlurmdPidFile=/run/slurmd-%n.pid
SlurmctldPidFile=/run/slurmctld.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
ReturnToService=2
KillWait=2
MpiDefault=none
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17001 CPUs=1 RealMemory=16000 State=UNKNOWN
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17002 CPUs=1 RealMemory=16000 State=UNKNOWN
PartitionName=all Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
CONF
slurmctld
slurmd -N n1
slurmd -N n2
for i in $(seq 60); do [ "$(sinfo -h -t idle -o %D 2>/dev/null)" = 2 ] && exit 0; sleep 0.5; done
sinfo
exit 1
"""


@pytest.fixture
def args(world: World, tmp_path: Path, begun_runs: Path, image: Image) -> list[str]:
    shutil.copytree(begun_runs, tmp_path / "runs")
    places = ["--profile", str(world.profile_file), "--runs", str(tmp_path / "runs"), "--store", str(world.store)]
    return [*places, "--image", image.tag]


@pytest.fixture
def waits(plugin_folder: Callable[[str, str, str], Path]) -> str:
    return str(plugin_folder("methods", "waits", WAITS))


def records(runs: Path) -> dict[str, dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in runs.glob("records/*/record.json")]
    return {record["run_id"]: record for record in found}


def a_step_waits(tmp_path: Path) -> bool:
    return any("a warning" in log.read_text() for log in tmp_path.glob("runs/scratch/try-*/train.stderr.log"))


@pytest.fixture
def ray_cluster() -> Iterator["subprocess.Popen[str]"]:
    script = [sys.executable, str(HERE / "ray_cluster.py")]
    cluster = subprocess.Popen(
        script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    yield cluster
    cluster.communicate(timeout=60)


def test_ray_runs_a_study_and_outlives_a_node(
    ray_cluster: "subprocess.Popen[str]", args: list[str], waits: str, tmp_path: Path, cli: Cli
) -> None:
    assert ray_cluster.stdout and ray_cluster.stdin
    env = os.environ | {"RAY_ADDRESS": ray_cluster.stdout.readline().strip(), "CDBENCH_PLUGINS": waits}
    # Ray itself would wait without a word for a node that is not there.
    small = cli("run", "base", *args, "--runner", "ray", "--set", "threads=2", RAY_ADDRESS=env["RAY_ADDRESS"])
    assert small.returncode == 4, small.stderr
    assert "none of the Ray cluster's 2 nodes has 2 CPUs, which profile 'micro' asks for a step" in small.stderr
    options = ["--runner", "ray", "--seeds", "0,1", "--set", "method.seconds=1"]
    command = [sys.executable, "-m", "cdbench", "run", "waits", *args, *options]
    study = subprocess.Popen(command, cwd=tmp_path, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    ray_cluster.stdin.write("kill\n")
    ray_cluster.stdin.flush()
    assert ray_cluster.stdout.readline() == "killed\n"
    _, told = study.communicate(timeout=200)
    assert study.returncode == 0, told
    assert "handed to ray, in containers there" in told
    assert "again  " in told and "NodeDiedError" in told, told
    found = records(tmp_path / "runs")
    assert [record["status"] for record in found.values()] == ["ok"] * 3
    for record in found.values():
        if record["spec"]["method"] == "waits":
            for where in ("container", "trained_in"):
                assert record["environment"][where]["machine"] == os.uname().nodename
                assert record["environment"][where]["runner"] == "docker"
    check_against_local(found, cli, args, waits, tmp_path)


def check_against_local(found: dict[str, Any], cli: Cli, args: list[str], waits: str, tmp_path: Path) -> None:
    """A cluster changes no number."""
    shutil.copytree(tmp_path / "runs", tmp_path / "local", ignore=shutil.ignore_patterns("records"))
    words = [str(tmp_path / "local") if word == str(tmp_path / "runs") else word for word in args[:-2]]
    done = cli("run", "waits", *words, "--seeds", "0,1", "--set", "method.seconds=1", CDBENCH_PLUGINS=waits)
    assert done.returncode == 0, done.stderr
    local = records(tmp_path / "local")
    assert {run_id: r["metrics"] for run_id, r in local.items()} == {
        run_id: r["metrics"] for run_id, r in found.items()
    }


def test_a_ray_cluster_that_is_not_there_is_one_sentence_and_exit_code_4(args: list[str], cli: Cli) -> None:
    done = cli("run", "base", *args, "--runner", "ray", RAY_ADDRESS="127.0.0.1:1")
    assert done.returncode == 4, done.stderr
    assert "no Ray cluster is found" in done.stderr and "ray start --head" in done.stderr


def test_slurm_without_sbatch_is_one_sentence_and_exit_code_4(args: list[str], cli: Cli) -> None:
    if shutil.which("sbatch"):
        pytest.skip("this machine has SLURM")
    done = cli("run", "base", *args, "--runner", "slurm")
    assert done.returncode == 4
    assert "needs sbatch on PATH" in done.stderr


@pytest.fixture
def slurm(tmp_path: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A container with slurmctld and two slurmd; this machine's Python, the checkout and the tests' folders at their paths."""
    engine = engine_or_skip()
    tools = "slurmctld,slurmd,slurm-client,munge,ca-certificates,libgomp1,libssl3,libffi8,libsqlite3-0,libbz2-1.0,liblzma5,zlib1g"
    bootstrapped(engine, SLURM_IMAGE, tools + ",libreadline8,libncursesw6,libstdc++6", tmp_path_factory.mktemp("slurm"))
    from docker.types import Mount

    wanted = {sys.base_prefix, sys.prefix, str(HERE.parent)}
    # What lies in another that is mounted is there already.
    read_only = [path for path in wanted if not any(Path(other) in Path(path).parents for other in wanted)]
    mounts = [Mount(path, path, type="bind", read_only=True) for path in sorted(read_only)]
    shared = {str(tmp_path), str(world.root), "/var/run/docker.sock"}
    mounts += [Mount(path, path, type="bind") for path in sorted(shared)]
    container = engine.containers.run(
        SLURM_IMAGE,
        ["sleep", "600"],
        detach=True,
        init=True,
        mounts=mounts,
        working_dir=str(tmp_path),
        hostname="slurm",
    )
    try:
        code, told = container.exec_run(["sh", "-c", SLURM_UP])
        assert code == 0, told.decode()[-2000:]
        yield container
    finally:
        container.remove(force=True, v=True)


def test_slurm_runs_a_study_and_outlives_a_node(
    slurm: Any, args: list[str], waits: str, tmp_path: Path, cli: Cli
) -> None:
    options = ["--runner", "slurm", "--seeds", "0,1", "--set", "method.seconds=6"]
    command = [sys.executable, "-m", "cdbench", "run", "waits", *args, *options]
    inside = ["docker", "exec", "-e", f"CDBENCH_PLUGINS={waits}", "-e", "HOME=/root", "-e", "LANG=C.UTF-8", slurm.id]
    study = subprocess.Popen([*inside, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: a_step_waits(tmp_path), 120)
    nodes = slurm.exec_run(["squeue", "-h", "-t", "R", "-n", "cdbench-train", "-o", "%N"])[1].decode().split()
    assert nodes, slurm.exec_run(["squeue"])[1].decode()
    code, words = slurm.exec_run(["scontrol", "update", f"nodename={nodes[0]}", "state=down", "reason=test"])
    assert code == 0, words
    time.sleep(1)
    slurm.exec_run(["scontrol", "update", f"nodename={nodes[0]}", "state=resume"])
    told = study.communicate(timeout=200)[0]
    assert study.returncode == 0, told[-3000:]
    assert "handed to slurm, in containers there" in told
    assert "again  waits" in told and "NODE_FAIL" in told, told
    assert f"ExcNodeList={nodes[0]}" in jobs(slurm)  # elsewhere: a node that is sick fails whatever it gets
    found = records(tmp_path / "runs")
    assert [record["status"] for record in found.values()] == ["ok"] * 3
    mine = [record["environment"] for record in found.values() if record["spec"]["method"] == "waits"]
    assert all(each["container"]["machine"] == each["trained_in"]["machine"] == "slurm" for each in mine)
    # As a harness that is killed leaves it: the next one cancels what it had handed in, and nothing else.
    sbatch = ["sbatch", "--parsable", "--wrap", "sleep 300"]
    left, others = (
        slurm.exec_run([*sbatch, *more])[1].decode().strip() for more in (["--job-name=cdbench-train"], ["--hold"])
    )
    scratch = tmp_path / "runs" / "scratch"
    scratch.mkdir(exist_ok=True)
    (scratch / f"job-{left}").write_text("cdbench-train")
    (scratch / f"job-{others}").write_text("cdbench-train")  # the number of another job
    again = [word if word != "0,1" else "2" for word in command]
    done = subprocess.run([*inside, *again], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=200)
    assert done.returncode == 0, done.stdout[-3000:]
    states = {line.split()[0]: line for line in jobs(slurm).splitlines()}
    assert "JobState=CANCELLED" in states[f"JobId={left}"]
    assert "JobState=PENDING" in states[f"JobId={others}"]
    # One node is the job's not to have, the other cannot be had: then it gets the one that it was kept from.
    slurm.exec_run(["scontrol", "update", "nodename=n1", "state=drain", "reason=test"])
    kept_out = slurm.exec_run([*sbatch, "--exclude=n2"])[1].decode().strip()
    ask = f"import cdbench.runners.slurm as s; s._let_in({kept_out!r}, s._shown({kept_out!r})); print(s._shown({kept_out!r}))"
    until(lambda: b"JobState=RUNNING" in slurm.exec_run([sys.executable, "-c", ask])[1])


def jobs(slurm: Any) -> str:
    """What SLURM says of each job, a line each."""
    return str(slurm.exec_run(["scontrol", "show", "job", "--oneliner"])[1].decode())
