"""Compile every kernel for GPUs that need not be there, and tell what it takes of them.

    python -m benchmarks.kernels --output benchmarks/results/kernels.jsonl

One line for each kernel, variant and target: registers of a thread, bytes that spilled, bytes of shared memory of a
program. NVIDIA's are what ``ptxas -v`` says, AMD's what stands in the assembly. Triton must not be interpreting.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from rich.console import Console
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlcorr.ops.contrast import streamed_triton
from mlcorr.ops.norder import batch_triton, closed_form_triton, enumeration_triton

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
_PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"

_OF_INPUT = ("student", "teacher", "to_student", "to_teacher", "probability", "result")
_OF_NUMBERS = ("alpha", "beta", "gamma")


class Variant(NamedTuple):
    """A kernel with all that is constant in it; pointers that are absent are the constant None."""

    kernel: Any
    name: str
    dtype: str
    constants: dict[str, Any]
    num_warps: int
    types: dict[str, str] = {}  # noqa: RUF012
    aligned: tuple[str, ...] = ()  # arguments that Triton finds divisible by 16

    def signature(self) -> dict[str, str]:
        """Return the type of every argument."""
        computed = "fp64" if self.dtype == "fp64" else "fp32"
        types = {}
        for name in self.kernel.arg_names:
            if name in self.constants:
                types[name] = "constexpr"
            elif name in self.types:
                types[name] = self.types[name]
            elif name in _OF_INPUT:
                types[name] = f"*{self.dtype}"
            elif name in _OF_NUMBERS:
                types[name] = "fp32"
            elif name == "mask":
                types[name] = "*u8"
            elif name in _INTEGERS or name.endswith(("_row", "_label", "_term")):
                types[name] = "i32"
            else:
                types[name] = f"*{computed}"
        return types

    def attributes(self) -> dict[tuple[int], list[list[Any]]]:
        """Return what is known of arguments beside their types."""
        places = (self.kernel.arg_names.index(name) for name in self.aligned if name not in self.constants)
        return {(place,): [["tt.divisibility", 16]] for place in places}


_INTEGERS = ("rows", "labels", "chunks", "sign")


def variants() -> Iterator[Variant]:
    """Yield what the launchers launch: every kernel at its largest tile, with all and with nothing optional."""
    forward, backward = closed_form_triton._forward, closed_form_triton._backward
    for dtype in ("fp16", "bf16", "fp32", "fp64"):
        double = dtype == "fp64"
        computed = torch.float64 if double else torch.float32
        instance = {"LOGITS": True, "DOUBLE": double, "MLD": False, "mask": None, "target": None}
        everything = {"LOGITS": True, "DOUBLE": double, "MLD": True}
        target = {"target": f"*{'i64' if dtype == 'fp32' else dtype}"}
        plan = {} if double else {"plan": None}
        for name, constants in (("instance", instance | plan), ("objective, masked", everything)):
            for labels in (80, 10_000):
                for kernel, of_thread, absent in (
                    (forward, closed_form_triton._FORWARD, {"partials": None} if labels == 80 else {}),
                    (backward, closed_form_triton._BACKWARD, {"to_teacher": None}),
                    (backward, closed_form_triton._BACKWARD, {}),
                ):
                    tile = closed_form_triton._tile(labels, computed, of_thread)
                    warps = tile.pop("num_warps")
                    to = "" if kernel is forward else ", to student" if absent else ", to both"
                    yield Variant(
                        kernel, f"{name}{to}, {labels} labels", dtype, constants | absent | tile, warps, target
                    )
        batch = {"LOGITS": True, "DOUBLE": double, "ROWS": 16, "LABELS": batch_triton._LABELS}
        yield Variant(batch_triton._centred, "batch", dtype, batch, 8)
        yield Variant(batch_triton._gradient, "batch", dtype, batch, 8)
        if dtype in ("fp32", "fp64"):
            yield Variant(closed_form_triton._combine, "256 chunks", dtype, {"CHUNKS": 256} | plan, 2)
            for order, labels in product(range(3, 7), (80, 1000)):
                yield _enumeration(order, labels, dtype, computed)
            yield from _contrast(dtype, computed)


def _contrast(dtype: str, computed: torch.dtype) -> Iterator[Variant]:
    names = ("ROWS", "COLUMNS", "DEPTH")
    *tile, warps = streamed_triton._PRODUCTS[computed]
    products = dict(zip(names, tile, strict=True))
    *tile, gradient_warps = streamed_triton._GRADIENT[computed]
    gradient = dict(zip(names, tile, strict=True))
    without = {side: dict.fromkeys((f"{side}_lse", f"{side}_grad", f"{side}_positive")) for side in ("row", "column")}
    same, other = {"SELF": True}, {"SELF": False}
    kernel = streamed_triton._sum_statistics
    no_positives = dict.fromkeys(("positive", "count"))
    yield _streamed(kernel, "rows with themselves", dtype, products | same, warps)
    yield _streamed(kernel, "rows with themselves, no positives", dtype, products | same | no_positives, warps)
    yield _streamed(kernel, "rows with columns", dtype, products | other, warps)
    kernel = streamed_triton._store_weights
    yield _streamed(kernel, "rows with themselves", dtype, products | same, warps)
    yield _streamed(kernel, "rows with columns", dtype, products | other | without["column"], warps)
    kernel = streamed_triton._sum_gradient
    for width in (64, streamed_triton._WIDTH[computed])[computed == torch.float64 :]:
        wide = gradient | {"WIDTH": width}
        yield _streamed(kernel, f"to rows that are both, {width} wide", dtype, wide | same, gradient_warps)
        for to, absent in (("rows", "column"), ("columns", "row")):
            constants = wide | other | without[absent]
            yield _streamed(kernel, f"to {to}, {width} wide", dtype, constants, gradient_warps)


def _streamed(kernel: Any, name: str, dtype: str, constants: dict[str, Any], warps: int) -> Variant:
    integers = ("row_number", "column_number", "dims", "each", "shift")
    types = {"rows": f"*{dtype}"} | dict.fromkeys(("row_labels", "column_labels", "count"), "*i64")
    types |= dict.fromkeys(integers, "i32")
    aligned = tuple(x for x in kernel.arg_names if x == "dims" or not (x.isupper() or x in integers))
    return Variant(kernel, name, dtype, constants, warps, types, aligned)


def _enumeration(order: int, labels: int, dtype: str, computed: torch.dtype) -> Variant:
    warps = 1 if labels <= enumeration_triton._MANY_LABELS else 4
    tile = {"rows": enumeration_triton._ROWS[computed], "columns": warps * enumeration_triton._COLUMNS}
    types = {"valid": "*i1", "num_labels": "i32", "valid_stride": "i32", "units": "i64", "programs": "i32"}
    kernel, constants = enumeration_triton._sum_sequences, {"order": order} | tile
    return Variant(kernel, f"order {order}, {labels} labels", dtype, constants, warps, types)


def resources(variant: Variant, target: str) -> dict[str, object]:
    """Compile and return a record."""
    if "PRECISION" in variant.kernel.arg_names:
        tensor_cores = target.startswith("sm_") and variant.dtype == "fp32"
        constants = variant.constants | {"PRECISION": "tf32x3" if tensor_cores else "ieee"}
        variant = variant._replace(constants=constants)
    source = ASTSource(variant.kernel, variant.signature(), variant.constants, variant.attributes())
    compiled = triton.compile(source, target=TARGETS[target], options={"num_warps": variant.num_warps})
    if target.startswith("sm_"):
        with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
            file.write(compiled.asm["ptx"])
            file.flush()
            # Hopper's own instructions are in the variant "a" of its architecture.
            command = [_PTXAS, "-v", "--gpu-name", "sm_90a" if target == "sm_90" else target, file.name]
            told = subprocess.run([*command, "-o", "/dev/null"], capture_output=True, text=True, check=True).stderr
        registers = int(re.findall(r"Used (\d+) registers", told)[-1])
        spilled = sum(int(number) for number in re.findall(r"(\d+) bytes spill", told))
    else:
        told = compiled.asm["amdgcn"]
        registers = int(re.findall(r"\.vgpr_count:\s+(\d+)", told)[-1])
        spilled = 4 * int(re.findall(r"\.vgpr_spill_count:\s+(\d+)", told)[-1])
    return {
        "kernel": variant.kernel.fn.__name__.lstrip("_"),
        "file": Path(variant.kernel.fn.__code__.co_filename).name,
        "variant": variant.name,
        "dtype": variant.dtype,
        "target": target,
        "warps": variant.num_warps,
        "registers": registers,
        "spilled": spilled,
        "shared": compiled.metadata.shared,
        "triton": triton.__version__,
    }


def main() -> None:
    """Compile all for all targets, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--output", type=Path, help="write the records there, one JSON object a line")
    arguments = parser.parse_args()
    records = [resources(variant, target) for variant in variants() for target in arguments.target]
    table = Table(*records[0], title="what a kernel takes")
    for record in records:
        table.add_row(*map(str, record.values()))
    Console(width=160).print(table)
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()
