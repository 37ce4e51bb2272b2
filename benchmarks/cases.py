"""The named sizes that are timed, and the inputs drawn for them."""

from __future__ import annotations

from math import perm
from typing import NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """A batch size, a number of labels, the orders that are distilled, and where the Huber loss turns linear."""

    name: str
    rows: int
    labels: int
    orders: tuple[int, ...] = (2, 3, 4)
    delta: float = 1.0

    @property
    def sequences(self) -> int:
        """Label sequences of the whole batch, one and its reverse counted once: what the definition goes over."""
        return self.rows * sum(perm(self.labels, order) // 2 for order in self.orders)


# Below 1 the closed form does not hold; with the logits drawn here, a quarter of the pairs differ by more than this.
DELTA = 0.25

CASES = {
    case.name: case
    for case in (
        Case("pairs-1x80", 1, 80, (2,)),
        Case("triples-1x80", 1, 80, (3,)),
        Case("quadruples-1x80", 1, 80, (4,)),
        Case("coco-32x80", 32, 80),
        Case("nuswide-128x81", 128, 81),
        Case("256x1000", 256, 1000),
        Case("openimages-1024x9605", 1024, 9605),
        Case("32x1000000", 32, 1_000_000),
        Case(f"delta-{DELTA}-order-4-32x80", 32, 80, (4,), DELTA),
        # What the figure is drawn from: against the number of labels, and against the order.
        *(Case(f"labels-32x{labels}", 32, labels) for labels in (10, 20, 40, 80, 160, 320, 1000, 10_000)),
        *(Case(f"order-{n}-1x{labels}", 1, labels, (n,)) for labels in (12, 80) for n in range(2, 7)),
        *(
            Case(f"delta-{DELTA}-order-{n}-1x{labels}", 1, labels, (n,), DELTA)
            for labels in (12, 80)
            for n in range(2, 7)
        ),
    )
}


class Inputs(NamedTuple):
    """Logits of a student (a leaf that wants a gradient) and of a teacher, and 0/1 targets."""

    student: Tensor
    teacher: Tensor
    target: Tensor

    def double(self) -> Inputs:
        """Return the same numbers in float64, the student again a leaf."""
        student, teacher, target = (x.detach().double() for x in self)
        return Inputs(student.requires_grad_(), teacher, target)


def draw(case: Case, device: torch.device) -> Inputs:
    """Return inputs of a student in training and a confident teacher; the same for the same case."""
    generator = torch.Generator().manual_seed(0)
    student, teacher, uniform = (torch.rand(case.rows, case.labels, generator=generator) for _ in range(3))
    student, teacher = 4 * student - 3, 8 * teacher - 6
    target = (uniform < teacher.sigmoid()).float()
    return Inputs(student.to(device).requires_grad_(), teacher.to(device), target.to(device))
