"""Writes, reads, restores, describes and exports checkpoints."""
