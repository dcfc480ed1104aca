"""Both paths and the gate."""
