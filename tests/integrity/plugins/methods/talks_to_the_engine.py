"""Looks for the engine that its container runs on, and for devices."""

import os
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class TalksToTheEngine(Method):
    def run(self, problem: Problem) -> Outcome:
        places = [
            "/var/run/docker.sock",
            "/run/docker.sock",
            "/run/podman/podman.sock",
            "/run/containerd/containerd.sock",
        ]
        devices = [name for name in os.listdir("/dev") if name.startswith(("sd", "vd", "nvme", "kmsg", "mem"))]
        return Outcome(extras={"found": [place for place in places if os.path.exists(place)] + devices})
