"""Simulated workers: who, when, what they push, and what is told of it."""
