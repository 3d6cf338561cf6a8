"""Standard architectures in plain torch, for demos, tests and benches. Imports torch and spacetime.errors only."""

from spacetime.zoo.registry import SMALL, STANDARD, ZOO, ZooEntry, build, example

__all__ = ["SMALL", "STANDARD", "ZOO", "ZooEntry", "build", "example"]
