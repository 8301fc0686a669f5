"""The coordinator: the server that merges updates and broadcasts versions."""
