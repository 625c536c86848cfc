"""The first load of millions of notes: one folder of vectors, written by one process, by several, or by a cluster."""
