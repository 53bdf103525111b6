"""Container engine, images, and what a run's container is promised."""

ENDED = b"\0cdbench: this step has ended well\n"
"""Closes what a step printed, on stdout and on stderr, where another may follow in its container (`runners.inside`)."""
