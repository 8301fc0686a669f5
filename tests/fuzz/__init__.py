"""Hostile bytes for everything that reads them: decoders, the service, a running coordinator."""
