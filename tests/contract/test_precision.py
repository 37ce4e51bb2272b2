"""In every dtype, results are no further from float64's than what plain PyTorch makes of the same numbers in it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from tests.contract.case import Case, Sizes, cast, differentiable, each_case
from tests.contract.cases import CASES
from tests.contract.extremes import measured, name_of, rounding
from tests.contract.plain import PLAIN

Measured = tuple[list[Tensor], dict[str, Tensor]]
_DRAWS = 12
_OFF = 4  # roundings that a result may be off by where plain PyTorch has none


def has_a_plain_form(case: Case) -> str | None:
    """For ``needs``: what is not made of PyTorch's own modules."""
    if name_of(case) in PLAIN:
        return None
    return differentiable(case) or "is made of PyTorch's own modules and rounds as they do"


@each_case("no further off than plain PyTorch", needs=has_a_plain_form)
def test_no_further_off_than_plain_pytorch(name: str) -> None:
    """Root mean squares over some draws, since either may be lucky in one."""
    case = CASES[name]
    plain = replace(case, make=lambda _: PLAIN[name], call=lambda function, given: function(**given))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        ours, theirs, least, alone, least_alone = (_Errors() for _ in range(5))
        for seed in range(_DRAWS):
            sizes = Sizes(rows=6, labels=6, seed=seed)
            arguments = cast(case.draw(sizes), dtype)
            truth = measured(case, cast(arguments, torch.float64), sizes)
            found, plainly = measured(case, arguments, sizes), measured(plain, arguments, sizes)
            if all(each.isfinite().all() for each in (*plainly[0], *plainly[1].values())):
                ours.add(found, truth)
                theirs.add(plainly, truth)
                least.add(found, truth, of_rounding=True)
            else:
                alone.add(found, truth)
                least_alone.add(found, truth, of_rounding=True)
        for what, off in ours.sizes().items():
            allowed = 2 * max(theirs.sizes()[what], least.sizes()[what])
            assert off <= allowed, f"{dtype}, {what}: {off:.3g}, allowed {allowed:.3g}"
        for what, off in alone.sizes().items():
            assert off <= _OFF * least_alone.sizes()[what], f"{dtype}, {what}: {off:.3g} where plain PyTorch has none"


class _Errors:
    """Errors of values and of the gradient to each leaf."""

    def __init__(self) -> None:
        self._squares: dict[str, list[float]] = {}

    def add(self, found: Measured, truth: Measured, *, of_rounding: bool = False) -> None:
        named = [
            {**{f"value {k}": value for k, value in enumerate(values)}, **gradients}
            for values, gradients in (found, truth)
        ]
        for what, true in named[1].items():
            one = named[0][what]
            off = rounding(one, true) if of_rounding else one.double() - true
            self._squares.setdefault(what, []).append(float(off.square().mean()))

    def sizes(self) -> dict[str, float]:
        """Return the root of their mean square."""
        return {what: (sum(squares) / len(squares)) ** 0.5 for what, squares in self._squares.items()}
