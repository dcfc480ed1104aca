"""Command lines, each read from top to bottom. `python -m experiments.train --help`."""
