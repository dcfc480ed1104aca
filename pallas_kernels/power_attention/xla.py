from pallas_kernels.power_attention.reference import power_attention  # noqa
