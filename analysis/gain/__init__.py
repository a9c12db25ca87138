"""Compute-equivalent gains: the paired model, what stands beside it, and its words."""
