"""SADCL's sample-to-sample loss (S2S): supervised contrast of features that each stand for one label."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_floating, check_integer, check_number, check_tensor
from mlcorr._distributed import check_group, gather_rows, global_sum
from mlcorr._precision import compute_dtype, no_autocast
from mlcorr.losses.prototype_contrastive import LOWEST_TEMPERATURE
from mlcorr.ops.contrast import Backend, select_backend, similarities, unit_vectors, widen_vectors


def sample_contrastive_loss(
    x: Tensor,
    labels: Tensor,
    *,
    keys: Tensor | None = None,
    key_labels: Tensor | None = None,
    num_labels: int | None = None,
    temperature: float = 0.2,
    block_size: int = 1024,
    backend: Backend = "auto",
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    r"""Mean over anchors of log Σₖ exp(sₐₖ) − (1/\|Pₐ\|) Σₚ sₐₚ, with s = cosine / temperature.

    Every vector of ``x`` is an anchor. Its keys are all other vectors of ``x``, and ``keys``; its positives Pₐ those of
    its own label. Anchors without a positive are skipped, in the divisor too.

    Similarities are formed block by block, forward and backward: memory is that of ``x`` and ``keys``, and of
    block_size² numbers, never A×A. Only second derivatives hold all similarities at once.

    Args:
        x: Vectors (A, D), of any length; float16, bfloat16, float32 or float64. One shorter than 1e-6 counts as if it
            were divided by that instead of its length.
        labels: (A,), integers; one below 0 makes its row padding, neither anchor nor key, whatever it holds.
        keys: More keys (M, D), such as a memory bank or what other processes hold. They may have a gradient.
        key_labels: (M,), as ``labels``; asked for with ``keys``.
        num_labels: Number of labels. With it, positives are taken from sums per label, in A·D operations; labels
            beyond it are padding too. Without it, and in kernels, labels are compared inside the blocks. The result is
            the same. The sums' gradients on a GPU without kernels are repeatable to the bit only under
            ``torch.use_deterministic_algorithms(True)``.
        temperature: At least 1e-12; 0.2 is the official code's, which the paper does not state.
        block_size: Anchors and keys that are compared at a time; kernels have their own.
        backend: "auto" (kernels where there are some), "streamed" (PyTorch) or "streamed_triton" (kernels); see
            :func:`mlcorr.ops.contrast.select_backend`.
        group: Process group that the vectors are spread over, or None. Those of other ranks are keys with gradient,
            every rank passes the same ``keys`` and returns the loss of all vectors; DistributedDataParallel's mean of
            the gradients is that of this loss.

    Returns:
        Scalar; float32, or float64 if ``x`` or ``keys`` is. 0 without an anchor that has a positive.

    Raises:
        TypeError: ``x`` or ``keys`` is no floating-point tensor, labels are no integers, ``group`` is no process group,
            or a parameter no number.
        ValueError: Shapes or devices do not fit, ``keys`` without ``key_labels`` or the reverse, or a parameter is
            outside its range.
        ImportError: ``backend="streamed_triton"`` without Triton.

    Differs from the authors' code:
        Theirs mixes two orders of rows, so that most anchors are lost, and shifts numerator and denominator of one
        fraction by different maxima; here all anchors count, and a log-sum-exp has one maximum. Theirs compares
        every feature of the batch with every other and masks; only active features are compared here.

    Reference:
        Eq. 4 of Ma et al., "Semantic-Aware Dual Contrastive Learning for Multi-Label Image Classification", ECAI 2023.
        For one label a sample and without ``keys`` it is the supervised contrastive loss of Khosla et al.,
        NeurIPS 2020.

    Example:
        >>> import torch
        >>> from mlcorr.functional import sample_contrastive_loss
        >>> x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 0.5]])
        >>> sample_contrastive_loss(x, torch.tensor([0, 0, 1, 1]), temperature=1.0)  # log(e + 2) − 1
        tensor(0.5514)
    """
    temperature = check_number("temperature", temperature, minimum=LOWEST_TEMPERATURE)
    block_size = check_integer("block_size", block_size, minimum=1)
    if num_labels is not None:
        num_labels = check_integer("num_labels", num_labels, minimum=1)
    group = check_group("group", group)
    check_vectors("x", x, "labels", labels)
    if (keys is None) != (key_labels is None):
        missing = "key_labels" if key_labels is None else "keys"
        raise ValueError(f"{missing}: expected a tensor, since its companion was given, got None")
    if keys is not None and key_labels is not None:
        check_vectors("keys", keys, "key_labels", key_labels)
        if keys.shape[1] != x.shape[1]:
            raise ValueError(f"keys: expected vectors of x's dimension, {x.shape[1]}, got {keys.shape[1]}")
        if keys.device != x.device:
            raise ValueError(f"keys: expected the device of x, {x.device}, got {keys.device}")
    if group is not None:
        select_backend(backend=backend, device=x.device)  # which raises before the ranks wait for each other
        # Widened before, so that the gradients of all ranks are added in what is computed in.
        x = widen_vectors(x, compute_dtype(x) if keys is None else compute_dtype(x, keys))
        others, other_labels = keys_of_ranks(x, labels.long(), group)
        keys = others if keys is None else torch.cat([others, keys.to(x.dtype)])
        key_labels = other_labels if key_labels is None else torch.cat([other_labels, key_labels.long()])
    total, anchors = sample_contrastive_terms(
        x, labels, keys, key_labels, num_labels, temperature, block_size=block_size, backend=backend
    )
    return global_sum(total, group) / global_sum(anchors, group).clamp(min=1)


def sample_contrastive_terms(
    x: Tensor,
    labels: Tensor,
    keys: Tensor | None,
    key_labels: Tensor | None,
    num_labels: int | None,
    temperature: float,
    *,
    block_size: int = 1024,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Return the sum over the anchors that have a positive, and their number; what is given is checked."""
    if keys is None or key_labels is None:
        keys, key_labels = x.new_zeros(0, x.shape[1]), labels.new_zeros(0)
    dtype = compute_dtype(x, keys)
    labels, key_labels = _known(labels, num_labels), _known(key_labels, num_labels)
    # Kernels compare labels at no cost.
    by_sums = num_labels is not None and select_backend(backend=backend, device=x.device).backend == "streamed"
    with no_autocast(x):
        x, keys = (
            unit_vectors(torch.where(of.unsqueeze(1) >= 0, vectors, 0.0), dtype)
            for vectors, of in ((x, labels), (keys, key_labels))
        )
        found = similarities(
            x, labels, keys, key_labels, 1 / temperature,
            positives=not by_sums, block_size=block_size, backend=backend,
        )  # fmt: skip
        positive, count = found.positive, found.positives
        if by_sums and num_labels is not None:
            positive, count = _positives_by_sums(x, labels, keys, key_labels, num_labels)
            positive = positive / temperature
        counted = (labels >= 0) & (count > 0)
        losses = found.lse - positive / count.clamp(min=1)
        return torch.where(counted, losses, 0.0).sum(), counted.sum()


def keys_of_ranks(x: Tensor, labels: Tensor, group: dist.ProcessGroup, *others: Tensor) -> tuple[Tensor, ...]:
    """Return vectors and labels of all ranks, −1 for the rank's own vectors, and other numbers of them (rows,)."""
    rank = dist.get_rank(group)
    keys = gather_rows(x, group, alike=False)
    numbers = torch.stack([torch.full_like(labels, rank), labels, *others], dim=1)
    ranks, of, *more = gather_rows(numbers, group).unbind(dim=1)
    return keys, torch.where(ranks == rank, -1, of), *more


def check_vectors(name: str, value: object, labels_name: str, labels: object) -> None:
    """Raise unless ``value`` is a floating (rows, D) and ``labels`` an integer (rows,) on its device."""
    vectors = check_floating(name, value, min_dim=2)
    if vectors.dim() != 2 or vectors.shape[1] == 0:
        raise ValueError(f"{name}: expected the shape (rows, D) with D >= 1, got {tuple(vectors.shape)}")
    of = check_tensor(labels_name, labels)
    if of.is_floating_point() or of.is_complex() or of.dtype == torch.bool:
        raise TypeError(f"{labels_name}: expected a tensor of integers, got {of.dtype}")
    if of.shape != vectors.shape[:1]:
        raise ValueError(f"{labels_name}: expected the shape ({len(vectors)},) of {name}, got {tuple(of.shape)}")
    if of.device != vectors.device:
        raise ValueError(f"{labels_name}: expected the device of {name}, {vectors.device}, got {of.device}")


def _known(labels: Tensor, num_labels: int | None) -> Tensor:
    labels = labels.long()
    return labels if num_labels is None else torch.where(labels < num_labels, labels, -1)


def _positives_by_sums(
    x: Tensor, labels: Tensor, keys: Tensor, key_labels: Tensor, num_labels: int
) -> tuple[Tensor, Tensor]:
    """Return the sum of every anchor's cosines to its positives, x·G − x·x for the sum G of its label, and how many."""
    rows, more = (torch.where(of < 0, num_labels, of) for of in (labels, key_labels))  # the last row is the padding's
    sums = x.new_zeros(num_labels + 1, x.shape[1]).index_add(0, rows, x).index_add(0, more, keys)
    number = labels.new_zeros(num_labels + 1).index_add(0, rows, torch.ones_like(rows))
    number = number.index_add(0, more, torch.ones_like(more))
    return (x * (sums.index_select(0, rows) - x)).sum(dim=1), number.index_select(0, rows) - 1
