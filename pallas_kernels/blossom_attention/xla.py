from pallas_kernels.blossom_attention.reference import blossom_attention  # noqa
