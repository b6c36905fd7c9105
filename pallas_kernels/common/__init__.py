"""What all kernels share: the chip, what a launch costs, search."""
