"""How fast the losses are on this machine: ``python -m benchmarks.run`` (or ``make bench``)."""
