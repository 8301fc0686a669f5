"""Values to bytes and back; no sockets."""
