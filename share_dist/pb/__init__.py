"""Generated from protos/; never edited. `make protos` makes it anew."""
