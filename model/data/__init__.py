"""Notes, events and pairs: files, related pairs (eq. 1), published data sets, samples."""
