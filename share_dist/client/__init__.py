"""The blocking client of a coordinator."""
