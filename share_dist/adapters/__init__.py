"""Subspaces inside torch modules, and foreign adapter checkpoints."""
