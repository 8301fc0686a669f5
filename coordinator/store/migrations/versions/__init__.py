"""The migrations, one file for each schema version."""
