"""Whether the kernels can be imported, found out once: a module, because a compiler traces imports as they succeed.

A failing import inside a compiled function would end its compilation, and at every call be tried anew.
"""

from __future__ import annotations

ERROR: str | None = None
try:
    from mlcorr.ops.norder import probabilities_triton  # noqa: F401  (the least of them, which asks for the version)
except Exception as error:  # whatever a broken or foreign build of Triton raises
    ERROR = f"{type(error).__name__}: {error}"
