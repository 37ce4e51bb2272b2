"""What the kernels and those who read their results agree on."""

# Of the sums of BCE and MLD, so that they do not overflow where their means over rows do not.
UNIT = 2.0**20

# Rows whose products u∘v are summed together on the way to g.
BLOCK_OF_ROWS = 16
