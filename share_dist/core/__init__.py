"""The pure core: values, and functions from values to values."""
