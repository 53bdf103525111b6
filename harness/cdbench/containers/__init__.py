"""Container engine, images, and what a run's container is promised."""
