"""share-dist: many private task streams, one shared low-rank subspace."""
