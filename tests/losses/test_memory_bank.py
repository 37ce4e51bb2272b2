"""The rings of the memory banks against Python lists."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from mlcorr.losses.memory_bank import GlobalMemoryBank, MemoryBank, PerLabelMemoryBank

LABELS = 3
batches = st.lists(st.lists(st.integers(-1, LABELS - 1), max_size=9), max_size=6)


def written(bank: MemoryBank, labels: list[list[int]]) -> list[list[tuple[int, float]]]:
    """Write batches of numbered embeddings, and return them as pairs of label and number."""
    number, pairs = 0.0, []
    for batch in labels:
        numbers = [number + k for k in range(len(batch))]
        number += len(batch)
        bank.write(torch.tensor(numbers).view(-1, 1).expand(-1, 2), torch.tensor(batch, dtype=torch.int64))
        pairs.append(list(zip(batch, numbers, strict=True)))
    return pairs


def held(bank: MemoryBank) -> list[tuple[int, float]]:
    embeddings, labels = bank.keys()
    assert torch.equal(embeddings[:, 0], embeddings[:, 1])
    return [(int(label), float(x[0])) for x, label in zip(embeddings, labels, strict=True) if label >= 0]


@settings(max_examples=100, deadline=None)
@given(batches=batches, size=st.integers(1, 4))
def test_a_ring_for_every_label_holds_its_last_embeddings(batches: list[list[int]], size: int) -> None:
    bank = PerLabelMemoryBank(LABELS, size, 2)
    everything = [pair for batch in written(bank, batches) for pair in batch]
    for label in range(LABELS):
        own = [pair for pair in everything if pair[0] == label]
        ring = {k % size: pair for k, pair in enumerate(own)}  # a later one takes the place of an earlier one
        assert [pair for pair in held(bank) if pair[0] == label] == [ring[k] for k in sorted(ring)]
        assert bank.pointer[label] == len(own) % size
        assert bank.count[label] == min(len(own), size)


@settings(max_examples=100, deadline=None)
@given(batches=batches, size=st.integers(1, 8))
def test_one_ring_holds_the_last_embeddings_of_all_labels(batches: list[list[int]], size: int) -> None:
    bank = GlobalMemoryBank(size, 2)
    own = [pair for batch in written(bank, batches) for pair in batch if pair[0] >= 0]
    ring = {k % size: pair for k, pair in enumerate(own)}
    assert held(bank) == [ring[k] for k in sorted(ring)]
    assert bank.pointer == len(own) % size


def inside(bank: MemoryBank, within: bool) -> tuple[torch.nn.Module, MemoryBank]:
    """Return what loads a state, the bank or a module from elsewhere around it, and the bank."""
    return torch.nn.ModuleList([bank]) if within else bank, bank


def banks(size: int = 4) -> list[MemoryBank]:
    return [PerLabelMemoryBank(LABELS, size, 2), GlobalMemoryBank(size, 2)]


@pytest.mark.parametrize("kind", [0, 1])
def test_forgets(kind: int) -> None:
    bank = banks()[kind]
    fresh = {name: value.clone() for name, value in bank.state_dict().items()}
    written(bank, [[0, 1, 2, 2], [1]])
    assert held(bank)
    bank.reset()
    assert held(bank) == []
    assert all(torch.equal(value, fresh[name]) for name, value in bank.state_dict().items())


def test_a_bank_needs_its_three_methods() -> None:
    class Half(MemoryBank):
        def keys(self) -> tuple[torch.Tensor, torch.Tensor]:
            return self.embeddings, self.pointer

    with pytest.raises(TypeError, match=r"abstract.*reset.*write"):
        Half()


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("kind", [0, 1])
def test_a_bank_of_another_size_is_refused_as_a_whole(kind: int, within: bool) -> None:
    (bank, own), (other, foreign) = (inside(banks(size)[kind], within) for size in (4, 5))
    written(own, [[0, 1, 2]])
    written(foreign, [[2, 2]])
    before = {name: value.clone() for name, value in bank.state_dict().items()}
    sizes = r"embeddings: expected \((3, )?4, 2\), got \((3, )?5, 2\)"
    with pytest.raises(RuntimeError, match=sizes):
        bank.load_state_dict(other.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in bank.state_dict().items())


@pytest.mark.parametrize("kind", [0, 1])
def test_goes_on_where_its_state_was_saved(kind: int) -> None:
    bank, other = banks()[kind], banks()[kind]
    written(bank, [[0, 1, 2, 0, 0]])
    other.load_state_dict(bank.state_dict())
    for each in (bank, other):
        written(each, [[0, 0, 1]])
    assert held(bank) == held(other)


@pytest.mark.parametrize("kind", [0, 1])
def test_what_is_not_finite_is_not_written(kind: int) -> None:
    bank = banks()[kind].half()
    x = torch.tensor([[1.0, 1.0], [torch.inf, 0.0], [torch.nan, 0.0], [1e5, 1e5], [2.0, 2.0]])  # 1e5 is no float16
    bank.write(x, torch.tensor([0, 0, 0, 0, 0]))
    assert held(bank) == [(0, 1.0), (0, 2.0)]


def test_rings_that_are_not_contiguous_are_written_too() -> None:
    bank = banks()[0]
    state = bank.state_dict()
    state["embeddings"] = torch.zeros(4, LABELS, 2).transpose(0, 1)
    bank.load_state_dict(state, assign=True)
    written(bank, [[0, 1, 1]])
    assert held(bank) == [(0, 0.0), (1, 1.0), (1, 2.0)]


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("kind", [0, 1])
def test_a_part_of_a_bank_is_refused(kind: int, within: bool) -> None:
    (module, bank), (other, full) = (inside(banks()[kind], within) for _ in range(2))
    written(full, [[0, 1]])
    state = {name: value for name, value in other.state_dict().items() if not name.endswith("pointer")}
    with pytest.raises(RuntimeError, match=r"(\t|\t\w+: )expected embeddings, .*pointer.*, got .* alone"):
        module.load_state_dict(state, strict=False)
    assert held(bank) == []
    module.load_state_dict({}, strict=False)
    assert held(bank) == []
    module.load_state_dict(other.state_dict())
    assert held(bank) == held(full)
