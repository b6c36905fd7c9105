"""Benchmarks of butterfly chains against dense layers and against one another."""
