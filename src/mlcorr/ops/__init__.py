"""Mathematics that has more than one implementation: one folder per operation."""
