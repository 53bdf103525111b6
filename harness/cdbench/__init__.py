"""cdbench: the reproducible benchmark for circuit distillation."""

__version__ = "0.1.0"
