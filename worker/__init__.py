"""The worker: Ray actors that learn their own task streams."""
