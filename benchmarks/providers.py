"""What is timed: each provider computes one of a few quantities in its own way.

Two providers of one quantity must agree: the gate in ``gate.py`` holds each against that quantity in float64.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cases import Case, Inputs
from benchmarks.definition import Loops, Vectorized
from mlcorr import AsymmetricLoss, MultiOrderDependencyLoss
from mlcorr.ops.norder import Backend, Level
from mlcorr.systems.mdkd import MDKDObjective

Loss = Callable[[Inputs], Tensor]
Build = Callable[[Case], Loss]


class Provider(NamedTuple):
    """``quantity`` names what the losses that ``build`` returns compute.

    A loss that is an ``nn.Module`` is moved to the device; its buffers are what it keeps from call to call.
    """

    quantity: str
    build: Build
    backward: bool = True  # False: a loop in Python numbers, without a gradient and with nothing to warm up
    reach: float = float("inf")  # label sequences of a case beyond which it would take too long
    gpu: bool = False  # True: for a GPU only
    package: str | None = None  # one that must be installed


def reason_to_skip(provider: Provider, case: Case, device: torch.device) -> str | None:
    """Return why a provider is not run on a case, or None where it is."""
    if provider.gpu and device.type == "cpu":
        return "needs a GPU"
    if provider.package and find_spec(provider.package) is None:
        return f"needs {provider.package}, which is not installed"
    if provider.quantity == "enumeration" and case.delta >= 1:
        return "for delta < 1, where the closed form does not hold"
    if provider.quantity in ("instance", "objective", "batch", "products") and case.delta < 1:
        return "for delta >= 1, where the closed form holds"
    if case.sequences > provider.reach:
        return f"{case.sequences:.1e} label sequences, which is beyond its {provider.reach:.0e}"
    return None


def _bce(case: Case) -> Loss:
    return lambda x: F.binary_cross_entropy_with_logits(x.student, x.target)


def _dependency(level: Level, backend: Backend = "closed_form") -> Build:
    def build(case: Case) -> Loss:
        module = MultiOrderDependencyLoss(case.orders, level=level, delta=case.delta, backend=backend)
        return lambda x: module(x.student, x.teacher)

    return build


def _objective(backend: Backend = "closed_form") -> Build:
    def build(case: Case) -> Loss:
        module = MDKDObjective(case.orders, level="instance", delta=case.delta, backend=backend)
        return lambda x: module(x.student, x.teacher, x.target)

    return build


def _asymmetric(case: Case) -> Loss:
    module = AsymmetricLoss()
    return lambda x: module(x.student, x.target)


def _asymmetric_timm(case: Case) -> Loss:
    """timm's, as ours is by default: focusing factors without a gradient, summed (older versions can only sum).

    It clamps probabilities at 1e-8. A probability of the drawn logits, all between −3 and 1, is nowhere near, so that
    value and gradient agree within the tolerance of all the others.
    """
    from timm.loss import AsymmetricLossMultiLabel

    summed = {"reduction": "sum"} if "reduction" in inspect.signature(AsymmetricLossMultiLabel).parameters else {}
    module = AsymmetricLossMultiLabel(
        gamma_neg=4, gamma_pos=1, clip=0.05, eps=1e-8, disable_torch_grad_focal_loss=True, **summed
    )
    return lambda x: module(x.student, x.target)


def _compiled(build: Build) -> Build:
    return lambda case: torch.compile(build(case), fullgraph=True, dynamic=False)


class _Products(torch.autograd.Function):
    """The matrix products of the batch level and nothing else: the bound that it is held against."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        if a.shape[0] < a.shape[1]:
            ctx.grams = (a @ a.T, b @ b.T, a @ b.T)
        else:
            ctx.grams = (a.T @ b,)
        return a.new_zeros(())

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004
        a, b = ctx.saved_tensors
        if len(ctx.grams) == 3:
            return ctx.grams[0] @ a + ctx.grams[1] @ b, None
        return a @ ctx.grams[0], None


def _products(case: Case) -> Loss:
    return lambda x: _Products.apply(x.student, x.teacher)


# Label sequences that take up to half a minute, on a CPU or, of the last, on a GPU.
_LOOPS, _GATHERS, _TENSORS, _KERNELS = 4e7, 1e9, 2e9, 1e12

PROVIDERS = {
    "bce": Provider("bce", _bce),
    "bce-compile": Provider("bce", _compiled(_bce)),
    "naive": Provider("instance", Loops, backward=False, reach=_LOOPS),
    "vectorized": Provider("instance", Vectorized, reach=_GATHERS),
    "eager": Provider("instance", _dependency("instance")),
    "compile": Provider("instance", _compiled(_dependency("instance"))),
    "triton": Provider("instance", _dependency("instance", "closed_form_triton"), gpu=True),
    "objective": Provider("objective", _objective()),
    "objective-compile": Provider("objective", _compiled(_objective())),
    "objective-triton": Provider("objective", _objective("closed_form_triton"), gpu=True),
    "batch": Provider("batch", _dependency("batch")),
    "batch-triton": Provider("batch", _dependency("batch", "closed_form_triton"), gpu=True),
    "products": Provider("products", _products),
    "enumeration": Provider("enumeration", _dependency("instance", "enumeration"), reach=_TENSORS),
    "enumeration-vectorized": Provider("enumeration", Vectorized, reach=_GATHERS),
    "enumeration-triton": Provider(
        "enumeration", _dependency("instance", "enumeration_triton"), reach=_KERNELS, gpu=True
    ),
    "asymmetric": Provider("asymmetric", _asymmetric),
    "asymmetric-compile": Provider("asymmetric", _compiled(_asymmetric)),
    "asymmetric-timm": Provider("asymmetric", _asymmetric_timm, package="timm"),
}

# The provider whose value and gradient in float64 are a quantity's truth; bare matrix products are no loss.
TRUTHS = {
    "bce": "bce",
    "instance": "eager",
    "objective": "objective",
    "batch": "batch",
    "enumeration": "enumeration",
    "asymmetric": "asymmetric",
}
