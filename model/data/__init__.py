"""Notes, clicks and pairs: files in and out, published data sets, samples."""
