"""A softmax over the items of a catalogue: see api.py."""
