"""BlossomRec in JAX: sequential recommendation with two sparse attention paths.

The model is in `blossom_jax.model`, one training run in `blossom_jax.trainer`, the data sets in
`blossom_jax.data`.
"""
