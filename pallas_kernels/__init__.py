"""Pallas GPU kernels for chains of butterfly factors: arrays in, arrays out."""
