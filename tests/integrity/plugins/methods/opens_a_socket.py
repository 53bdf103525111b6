"""Fetches the answers."""

import socket
from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class OpensASocket(Method):
    def run(self, problem: Problem) -> Outcome:
        with socket.create_connection(("192.0.2.1", 80), timeout=5):
            return Outcome()
