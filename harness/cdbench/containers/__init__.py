"""Container engine, images, and what a run's container is promised."""

AGAIN = "again"
"""Said to a container that is to wait for another step after one that ended well."""
ENDED = b"\0cdbench: this step has ended well\n"
"""Closes what a step printed, on stdout and on stderr, where another may follow in its container (`runners.inside`)."""
