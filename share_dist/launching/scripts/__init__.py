"""Shell scripts that are copied to machines as they are."""
