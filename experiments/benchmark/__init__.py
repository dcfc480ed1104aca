"""Measures the project on the machine at hand: `python -m experiments.benchmark COMMAND`."""
