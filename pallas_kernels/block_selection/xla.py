from pallas_kernels.block_selection.reference import block_selection  # noqa
