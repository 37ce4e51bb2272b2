"""Research systems, assembled from the parts; each is imported from its own module."""
