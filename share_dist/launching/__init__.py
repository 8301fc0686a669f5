"""Launching: one plan in, the files of one target out. Pure, but for the commands that use it."""
