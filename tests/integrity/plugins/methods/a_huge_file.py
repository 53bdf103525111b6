"""Writes ten gigabytes into one file."""

from dataclasses import dataclass

from cdbench.api import Method, Outcome, Problem


@dataclass(frozen=True)
class AHugeFile(Method):
    def run(self, problem: Problem) -> Outcome:
        with open("student.safetensors", "wb") as file:
            for _ in range(10 << 10):
                file.write(bytes(1 << 20))
        return Outcome()
