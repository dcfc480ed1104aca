"""One page of pictures and tables about finished runs and sweeps."""
