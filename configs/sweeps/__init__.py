"""Sweeps: which rows of a table are trained. quickstart.py tells the format of these files."""
