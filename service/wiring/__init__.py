"""The composition root: the only place that knows which class stands behind which seam; a module each process.

The ``run`` of each returns after SIGINT or SIGTERM, and raises SetupError for what the operator has to put right.
What is heavy is imported where it is needed: a gateway's image holds no torch or FAISS.
"""
