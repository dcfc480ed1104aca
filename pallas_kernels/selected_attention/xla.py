from pallas_kernels.selected_attention.reference import selected_attention  # noqa
