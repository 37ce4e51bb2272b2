"""The scores of :mod:`mlcorr.metrics` as torchmetrics' ``Metric``: for Lightning, and for evaluation on many processes.

Needs torchmetrics: ``pip install 'mlcorr[metrics]'``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final, Literal, TypeAlias, cast, get_args

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from mlcorr._checks import check_choice, check_data, check_floating, check_integer, check_tensor
from mlcorr._distributed import gather_rows
from mlcorr._targets import check_target
from mlcorr.metrics import Array, Empty, Inputs, Rule, multilabel_scores

try:
    from torchmetrics import Metric
except ImportError as error:
    raise ImportError(
        f"mlcorr.metrics_torchmetrics needs torchmetrics, which cannot be imported ({error}); "
        "pip install 'mlcorr[metrics]'"
    ) from error

__all__ = ["MultilabelScore", "MultilabelScores"]

Score: TypeAlias = Literal["mAP", "OP", "OR", "OF1", "CP", "CR", "CF1", "CF1_mean"]

# What states are kept in: scores in the first four, targets in the last.
_DTYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8)


class _Evaluation(Metric):
    """Everything that was scored so far, and :func:`mlcorr.metrics.multilabel_scores` of it."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    scores: list[Tensor] | Tensor  # one tensor only between torchmetrics' sync and unsync
    targets: list[Tensor] | Tensor

    def __init__(
        self,
        num_labels: int,
        *,
        inputs: Inputs = "probabilities",
        rule: Rule = "threshold",
        threshold: float | Array = 0.5,
        top_k: int = 3,
        prevalence: Array | None = None,
        empty: Empty = "skip",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.num_labels = check_integer("num_labels", num_labels, minimum=1)
        self.inputs = inputs
        self.rule = rule
        # Tensors among them are no buffers: a model that is made half precision would round thresholds.
        self.threshold = _kept("threshold", threshold)
        self.top_k = top_k
        self.prevalence = _kept("prevalence", prevalence)
        self.empty = empty
        self._evaluate(*self._nothing())  # checks the options, as every evaluation does
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Add a batch, which may be empty.

        Args:
            scores: (N, C) of any floating-point dtype, on the metric's device. It is copied, so that it may be
                overwritten afterwards, as the outputs of CUDA graphs are.
            targets: (N, C), bool, integer or floating-point: 1 is positive, 0 negative, below 0 (or NaN) unknown.

        Raises:
            TypeError: an argument is no tensor, ``scores`` not floating-point, or ``targets`` complex.
            ValueError: shapes or devices do not fit. In both cases what was added before is as it was.
        """
        targets = self._check(scores, targets)
        if len(scores) == 0:
            return
        stored = scores.detach()
        stored = stored.clone(memory_format=torch.contiguous_format) if stored.dtype in _DTYPES else stored.float()
        cast("list[Tensor]", self.scores).append(stored)
        unknown = ~(targets >= 0)  # NaN too
        cast("list[Tensor]", self.targets).append((targets == 1).to(torch.int8) - unknown.to(torch.int8))

    def forward(self, scores: Tensor, targets: Tensor) -> Any:
        """Add a batch, and return what :meth:`compute` would of this batch alone.

        Raises:
            RuntimeError: With ``dist_sync_on_step``, another process is gone, or too late. What was added before is as
                it was, without this batch.
        """
        self._check(scores, targets)
        # Torchmetrics puts the state aside, where an error would leave it.
        kept = {name: list(value) if isinstance(value, list) else value for name, value in self.__dict__.items()}
        try:
            return super().forward(scores, targets)
        except BaseException:
            self.__dict__.update(kept)
            raise

    def sync(
        self,
        dist_sync_fn: Callable[..., Any] | None = None,
        process_group: Any = None,
        should_sync: bool = True,
        distributed_available: Callable[..., Any] | None = None,
    ) -> None:
        """Gather the batches of all processes, as ``compute`` does by itself; see ``torchmetrics.Metric``."""
        super().sync(
            dist_sync_fn=dist_sync_fn or self._gather,
            process_group=process_group,
            should_sync=should_sync,
            distributed_available=distributed_available,
        )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"num_labels={self.num_labels}, inputs={self.inputs!r}, rule={self.rule!r}, empty={self.empty!r}"

    def _values(self) -> dict[str, float]:
        """Return the scores of everything that was added."""
        if len(self.scores) == 0:
            return self._evaluate(*self._nothing())
        return self._evaluate(*(x if isinstance(x, Tensor) else torch.cat(x) for x in (self.scores, self.targets)))

    def _evaluate(self, scores: Tensor, targets: Tensor) -> dict[str, float]:
        return multilabel_scores(
            scores,
            targets,
            inputs=self.inputs,
            rule=self.rule,
            threshold=self.threshold,
            top_k=self.top_k,
            prevalence=self.prevalence,
            empty=self.empty,
        )

    def _nothing(self) -> tuple[Tensor, Tensor]:
        none = torch.zeros(0, self.num_labels, dtype=torch.float32, device="cpu")
        return none, none

    def _returned(self, values: list[float]) -> tuple[Tensor, ...]:
        """Return numbers as scalar tensors on the metric's device, by one copy."""
        dtype = torch.float32 if self.device.type == "mps" else torch.float64  # it has no float64
        return torch.tensor(values, dtype=dtype, device=self.device).unbind()

    def _check(self, scores: object, targets: object) -> Tensor:
        score = check_floating("scores", scores, min_dim=0, any_bits=True)
        if score.dim() != 2 or score.shape[1] != self.num_labels:
            raise ValueError(f"scores: expected shape (N, {self.num_labels}), got {tuple(score.shape)}")
        target = check_target("targets", targets, "scores", score)
        if score.device != self.device:
            raise ValueError(
                f"scores: expected the device of the metric, {self.device}, got {score.device}; "
                f"move the metric there with .to({str(score.device)!r})"
            )
        return target

    def _gather(self, rows: Tensor, group: Any = None) -> list[Tensor]:
        """Return the rows of all processes, bit for bit.

        For a process that has none torchmetrics passes a float32 tensor of shape (0,), which its own function then
        gathers as if it were of the others' dtype and number of dimensions. Here the others decide. Bytes are sent,
        since not every backend knows every dtype.
        """
        group = dist.group.WORLD if group is None else group
        own = torch.tensor([len(rows), _DTYPES.index(rows.dtype)], device=rows.device)
        of_ranks = [torch.empty_like(own) for _ in range(dist.get_world_size(group))]
        dist.all_gather(of_ranks, own, group=group)
        dtypes = [_DTYPES[code] for count, code in torch.stack(of_ranks).tolist() if count > 0]
        dtype = functools.reduce(torch.promote_types, dtypes) if dtypes else rows.dtype
        as_bytes = rows.reshape(-1, self.num_labels).to(dtype).contiguous().view(torch.uint8)
        return [gather_rows(as_bytes, group).view(dtype)]


class MultilabelScores(_Evaluation):
    """Metric of :func:`mlcorr.metrics.multilabel_scores`: overall and per-class precision, recall and F1, and mAP.

    ``compute()`` is that function of everything that was added since ``reset()``, by all processes, as a dict of
    scalar tensors: equal to the last bit, however the rows were split. They are float64 (float32 on devices without
    it) on the metric's device. Before anything was added it is the function of no rows: 0.0, or nan with
    ``empty="nan"``, and torchmetrics warns.

    The mAP needs all scores, so they are kept: N·C numbers in the dtype in which they came, and N·C bytes. In a
    ``torchmetrics.MetricCollection``, metrics that differ in their options alone keep them once. Processes may
    have different numbers of rows, or none; a sampler that repeats rows to make the numbers equal repeats them here.

    In Lightning, call ``update`` in ``validation_step``, and in ``on_validation_epoch_end``
    ``self.log_dict(self.scores.compute())`` and ``self.scores.reset()``. Calling the metric itself gives the scores of
    one batch, whose mean over batches is *not* the score of all; and it copies what was kept. To log the metric as an
    object, take :class:`MultilabelScore`.

    Args:
        num_labels: C.
        inputs: See :func:`mlcorr.metrics.multilabel_scores`, as for all up to ``empty``.
        rule: How entries are predicted.
        threshold: A probability, or one per class (C,).
        top_k: At least 1.
        prevalence: (C,), asked for with ``rule="prevalence"``.
        empty: The treatment of classes without positives or predictions.
        kwargs: Those of ``torchmetrics.Metric``, such as ``process_group`` or ``compute_on_cpu``.

    Raises:
        TypeError: An argument is of the wrong type.
        ValueError: An argument is out of its range, or unknown.

    Shape:
        - scores: (N, C), floating-point, on the metric's device.
        - targets: (N, C), 1 positive, 0 negative, below 0 (or NaN) unknown.

    Example:
        >>> import torch
        >>> from mlcorr.metrics_torchmetrics import MultilabelScores
        >>> metric = MultilabelScores(3)
        >>> metric.update(torch.tensor([[0.9, 0.2, 0.6]]), torch.tensor([[1, 1, 0]]))
        >>> metric.update(torch.tensor([[0.8, 0.7, 0.1]]), torch.tensor([[1, -1, 0]]))
        >>> {name: round(value.item(), 3) for name, value in metric.compute().items()}
        {'mAP': 1.0, 'OP': 0.667, 'OR': 0.667, 'OF1': 0.667, 'CP': 0.5, 'CR': 0.5, 'CF1': 0.5, 'CF1_mean': 0.5,
         'classes_without_positives': 1.0, 'classes_without_predictions': 1.0}
    """

    def compute(self) -> dict[str, Tensor]:
        """Return all scores of what was added, as scalar tensors."""
        values = self._values()
        return dict(zip(values, self._returned(list(values.values())), strict=True))


class MultilabelScore(_Evaluation):
    """One of the :class:`MultilabelScores`, as a scalar: what ``self.log`` of Lightning takes as a metric.

    Parameters are those of :class:`MultilabelScores`, and:

    Args:
        num_labels: C.
        score: "mAP", "OP", "OR", "OF1", "CP", "CR", "CF1" or "CF1_mean".

    Example:
        >>> import torch
        >>> from torchmetrics import MetricCollection
        >>> from mlcorr.metrics_torchmetrics import MultilabelScore
        >>> metrics = MetricCollection(
        ...     {"mAP": MultilabelScore(3), "top2_OF1": MultilabelScore(3, "OF1", rule="topk", top_k=2)}
        ... )
        >>> metrics.update(torch.tensor([[0.9, 0.2, 0.6], [0.8, 0.7, 0.1]]), torch.tensor([[1, 1, 0], [1, -1, 0]]))
        >>> {name: round(value.item(), 3) for name, value in metrics.compute().items()}
        {'mAP': 1.0, 'top2_OF1': 0.571}
    """

    def __init__(
        self,
        num_labels: int,
        score: Score = "mAP",
        *,
        inputs: Inputs = "probabilities",
        rule: Rule = "threshold",
        threshold: float | Array = 0.5,
        top_k: int = 3,
        prevalence: Array | None = None,
        empty: Empty = "skip",
        **kwargs: Any,
    ) -> None:
        check_choice("score", score, get_args(Score))
        super().__init__(
            num_labels,
            inputs=inputs,
            rule=rule,
            threshold=threshold,
            top_k=top_k,
            prevalence=prevalence,
            empty=empty,
            **kwargs,
        )
        self.score = score

    def compute(self) -> Tensor:
        """Return the score of what was added."""
        return self._returned([self._values()[self.score]])[0]

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return f"score={self.score!r}, {super().extra_repr()}"


def _kept(name: str, value: float | Array | None) -> Any:
    """Return a copy of ``value`` that neither moves nor is rounded with the model it is in."""
    if isinstance(value, Tensor):
        return check_data(name, check_tensor(name, value)).detach().cpu().clone()
    return value.copy() if isinstance(value, np.ndarray) else value
