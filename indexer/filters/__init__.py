"""The filter language: parsed, held as expressions, evaluated on the fields of one id. Knows no rows and no FAISS."""
