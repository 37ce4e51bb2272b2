"""What ``python -m mlcorr`` tells: versions, which implementations can run here, and whether they are right.

Every implementation runs in float32 and is held against its definition, which is written out below in float64.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import itertools
import platform
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import mlcorr
from mlcorr.functional import (
    asymmetric_loss,
    binary_cross_entropy_loss,
    mld_loss,
    multi_order_dependency_loss,
    sample_contrastive_loss,
)
from mlcorr.ops import contrast, norder
from mlcorr.systems.mdkd import MDKDObjective

_NEEDED: Final = ("numpy", "einops", "scikit-learn")
_MODULES: Final = {"scikit-learn": "sklearn"}  # where a package is called otherwise than what it brings
OPTIONAL: Final = ("torchmetrics", "matplotlib", "transformers", "timm")

UNIT: Final = 2.0**-24  # float32's relative rounding error
# A few hundred roundings: sums of this size need some ten, and TF32 or half precision would be a thousand times beyond.
TOLERANCE: Final = 256 * UNIT


class Backend(NamedTuple):
    """Whether an implementation can run on a device; ``reason`` tells why not, or why "auto" takes it."""

    operation: str
    name: str
    available: bool
    chosen: bool
    reason: str


class Check(NamedTuple):
    """How far value and gradients are from the definition, relative to the largest entry.

    ``failure`` is empty if that is near enough; there is no ``error`` if nothing could be compared.
    """

    name: str
    error: float | None
    failure: str


def versions() -> dict[str, str | None]:
    """Return the versions of what the library is made of, None for what is not installed."""
    found: dict[str, str | None] = {
        "mlcorr": mlcorr.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "torch": torch.__version__,
    }
    return found | {name: _version(name) for name in (*_NEEDED, "triton", *OPTIONAL)}


def devices() -> list[torch.device]:
    """Return the devices of this machine that the library can use."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def describe(device: torch.device) -> str:
    """Return the name of a device, as far as PyTorch knows it."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        return f"{threads} thread{'' if threads == 1 else 's'}, {torch.backends.cpu.get_cpu_capability()}"
    return device.type


def backends(device: torch.device) -> list[Backend]:
    """Return every implementation, and what the library's own choice says of it on ``device``."""
    select_norder = functools.partial(norder.select_backend, "instance", batch_size=_ROWS, device=device)
    select_contrast = functools.partial(contrast.select_backend, device=device)
    operations: list[tuple[str, tuple[str, ...], Callable[..., Any]]] = [
        ("n-order", norder.BACKENDS, select_norder),
        ("contrast", contrast.BACKENDS, select_contrast),
    ]
    found = []
    for operation, names, select in operations:
        automatic = select()
        for name in names[1:]:  # the first is "auto"
            chosen = name == automatic.backend
            try:
                select(backend=name)
            except (ImportError, ValueError) as error:
                found.append(Backend(operation, name, False, chosen, str(error)))
            else:
                found.append(Backend(operation, name, True, chosen, automatic.reason if chosen else ""))
    return found


def checks(device: torch.device) -> Iterator[Check]:
    """Compare with the definition, on ``device``, every implementation that it has."""
    available = {(backend.operation, backend.name) for backend in backends(device) if backend.available}
    student, teacher, target = _labels()
    against = functools.partial(_compare, device)

    for form in norder.BACKENDS[1:]:
        if ("n-order", form) not in available:
            continue
        for delta, highest in ((1.0, 4), (0.1, 5)):
            if delta < 1 and form.startswith("closed_form"):
                continue  # which is for the quadratic part of the Huber loss
            orders = tuple(range(2, highest + 1))
            yield against(
                f"n-order {form}, delta {delta:g}",
                functools.partial(multi_order_dependency_loss, backend=form, orders=orders, delta=delta),
                functools.partial(dependency_by_definition, orders=orders, delta=delta),
                (student, teacher),
            )
    x, labels, keys, key_labels = _vectors()
    given = {"labels": labels, "key_labels": key_labels}
    for name in contrast.BACKENDS[1:]:
        if ("contrast", name) not in available:
            continue
        for positives, num_labels in (("compared", None), ("from sums", _VECTOR_LABELS)):
            if num_labels is not None and name != "streamed":
                continue  # kernels compare labels either way
            yield against(
                f"contrast {name}, positives {positives}",
                functools.partial(_contrastive, backend=name, num_labels=num_labels, block_size=8),
                contrastive_by_definition,
                (x, keys),
                given,
            )
    pair = {"target": target}
    yield against("MLD", mld_loss, mld_by_definition, (student, teacher))
    yield against("asymmetric", asymmetric_loss, asymmetric_by_definition, (student,), pair)
    yield against("binary cross-entropy", binary_cross_entropy_loss, cross_entropy_by_definition, (student,), pair)
    yield against("MDKD objective", _objective, objective_by_definition, (student, teacher), pair)


# --- the definitions, in float64 -----------------------------------------------------------------------------------


def dependency_by_definition(
    student: Tensor, teacher: Tensor, *, orders: tuple[int, ...] = (2, 3, 4), delta: float = 1.0
) -> Tensor:
    """Mean over sequences of labels of Huber(mean difference along the sequence): MDKD, Eqs. 4-14."""
    s, t = student.sigmoid(), teacher.sigmoid()
    phi_s, phi_t = ((p.unsqueeze(2) - p.unsqueeze(1)).square() for p in (s, t))  # (B, C, C)
    difference = phi_t - phi_s
    total = torch.zeros((), dtype=student.dtype)
    for order in orders:
        # A sequence and its reverse, both in here, have one loss, so that the mean is that over either.
        along = torch.tensor(list(itertools.permutations(range(student.shape[1]), order))).T
        for level in (difference, difference.mean(0, keepdim=True)):  # of instances, of the batch
            steps = torch.stack([level[:, one, other] for one, other in itertools.pairwise(along)])
            mean = steps.mean(0)  # (B, sequences)
            total = total + F.huber_loss(mean, torch.zeros_like(mean), delta=delta)
    return total


def contrastive_by_definition(x: Tensor, keys: Tensor, *, labels: Tensor, key_labels: Tensor) -> Tensor:
    """Mean over anchors with a positive of log Σ exp(s) - mean of s over positives: SADCL, Eq. 4."""
    losses = []
    every, of = torch.cat([x, keys]), torch.cat([labels, key_labels])
    for anchor in range(len(x)):
        others = (of >= 0) & (torch.arange(len(of)) != anchor)
        positive = others & (of == labels[anchor])
        if labels[anchor] >= 0 and positive.any():
            s = F.cosine_similarity(x[anchor].unsqueeze(0), every) / _TEMPERATURE
            losses.append(s[others].exp().sum().log() - s[positive].mean())
    return torch.stack(losses).mean()


def mld_by_definition(student: Tensor, teacher: Tensor) -> Tensor:
    """Σ KL(Bernoulli(t) ‖ Bernoulli(s)) over labels, averaged over the batch."""
    s, t = student.sigmoid(), teacher.sigmoid()
    return (t * (t / s).log() + (1 - t) * ((1 - t) / (1 - s)).log()).sum() / len(s)


def asymmetric_by_definition(input: Tensor, *, target: Tensor) -> Tensor:
    """The asymmetric loss at its defaults: γ⁺ = 1, γ⁻ = 4, clip 0.05, focusing factors constant, a sum."""
    p = input.sigmoid()
    q = (p - 0.05).clamp(min=0)
    positive = -(1 - p).detach() * p.log()
    negative = -q.detach().pow(4) * (1 - q).log()
    return positive[target == 1].sum() + negative[target == 0].sum()


def cross_entropy_by_definition(input: Tensor, *, target: Tensor) -> Tensor:
    """Binary cross-entropy over known labels, summed over labels, averaged over rows with a known label."""
    p = input.sigmoid()
    total = p[target == 1].log().sum() + (1 - p[target == 0]).log().sum()
    return -total / (target >= 0).any(dim=1).sum()


def objective_by_definition(student: Tensor, teacher: Tensor, *, target: Tensor) -> Tensor:
    """BCE + 10·MLD + L_ID + L_BD: MDKD, Eq. 15."""
    base = cross_entropy_by_definition(student, target=target)
    return base + 10 * mld_by_definition(student, teacher) + dependency_by_definition(student, teacher)


# --- data and comparison -------------------------------------------------------------------------------------------

_ROWS, _LABELS, _VECTOR_LABELS, _TEMPERATURE = 6, 7, 3, 0.2


def _labels() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(_ROWS, _LABELS, generator=generator) for _ in range(2))
    return student, teacher, torch.randint(-1, 2, (_ROWS, _LABELS), generator=generator)


def _vectors() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, keys = (torch.randn(rows, 16, generator=generator) for rows in (20, 12))
    labels, key_labels = (torch.randint(-1, _VECTOR_LABELS, (len(of),), generator=generator) for of in (x, keys))
    return x, labels, keys, key_labels


def _contrastive(x: Tensor, keys: Tensor, *, labels: Tensor, key_labels: Tensor, **options: Any) -> Tensor:
    return sample_contrastive_loss(x, labels, keys=keys, key_labels=key_labels, temperature=_TEMPERATURE, **options)


def _objective(student: Tensor, teacher: Tensor, *, target: Tensor) -> Tensor:
    value: Tensor = MDKDObjective()(student, teacher, target)
    return value


def _compare(
    device: torch.device,
    name: str,
    function: Callable[..., Tensor],
    definition: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    others: dict[str, Tensor] | None = None,
) -> Check:
    """Compare value and gradients of ``function``, in float32 on ``device``, with those of ``definition``."""
    others = others or {}
    expected = _value_and_gradients(definition, [x.double() for x in inputs], others)
    there = {key: value.to(device) for key, value in others.items()}
    precision = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")  # where products are of TF32 by default, that is no fault
        actual = _value_and_gradients(function, [x.to(device) for x in inputs], there)
    except Exception as raised:  # whatever a broken installation raises: to be told, with all the rest
        return Check(name, None, f"{type(raised).__name__}: {raised}")
    finally:
        torch.set_float32_matmul_precision(precision)
    if not all(a.isfinite().all() for a in actual):
        return Check(name, None, "value or gradient is not finite")
    error = max(
        float((a.cpu().double() - e).abs().max() / e.abs().max()) for a, e in zip(actual, expected, strict=True)
    )
    return Check(name, error, "" if error <= TOLERANCE else f"allowed is {TOLERANCE:.0e}")


def _value_and_gradients(
    function: Callable[..., Tensor], inputs: list[Tensor], others: dict[str, Tensor]
) -> tuple[Tensor, ...]:
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        value = function(*leaves, **others)
        return value.detach(), *torch.autograd.grad(value, leaves)


def _version(package: str) -> str | None:
    if importlib.util.find_spec(_MODULES.get(package, package)) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # as of builds that go by another name
        return "unknown version"
