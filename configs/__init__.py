"""Configs: data only. Every default stands in `common.py`, each file changes what differs."""
