"""Text with several labels, a small BERT under LatentContext: ``python -m examples.integrations.text_tagging``.

The texts are scikit-learn's own docstrings, which come with the installation. From the prose that says what a function
does, up to its list of parameters, the model tells which of the commonest parameters the function takes.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import sklearn
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from mlcorr.metrics import multilabel_scores
from mlcorr.systems.latent_context import LatentContext

LABELS, WORDS, LENGTH = 12, 1500, 48
PAD, UNKNOWN = 0, 1


def documented(files: Iterable[Path]) -> Iterator[tuple[list[str], set[str]]]:
    """Yield the words of every function's prose and the names of its parameters; nothing is imported."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (text := ast.get_docstring(node)):
                prose = re.split(r"\n\w[\w ]*\n-{3,}", text)[0]  # up to the first heading
                names = {each.arg for each in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
                yield re.findall(r"[a-z]+", prose.lower())[:LENGTH], names - {"self", "cls"}


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor], list[str]]:
    """Return word numbers (N, LENGTH) and targets (N, LABELS) to train on and to test on, and the labels."""
    files = sorted(path for path in Path(sklearn.__file__).parent.rglob("*.py") if "tests" not in path.parts)
    parts = [file.parent for file in files]  # whole folders are held out: their functions resemble each other
    held_out = set(sorted(set(parts))[::4])
    samples = [
        list(documented(file for file, part in zip(files, parts, strict=True) if (part in held_out) is is_test))
        for is_test in (False, True)
    ]
    labels = [name for name, _ in Counter(name for _, names in samples[0] for name in names).most_common(LABELS)]
    words = Counter(word for prose, _ in samples[0] for word in prose).most_common(WORDS)
    number = {word: index for index, (word, _) in enumerate(words, start=2)}

    def encode(split: list[tuple[list[str], set[str]]]) -> tuple[Tensor, Tensor]:
        kept = [(prose, names) for prose, names in split if prose and names & set(labels)]
        ids = torch.full((len(kept), LENGTH), PAD)
        for row, (prose, _) in enumerate(kept):
            ids[row, : len(prose)] = torch.tensor([number.get(word, UNKNOWN) for word in prose])
        return ids, torch.tensor([[float(label in names) for label in labels] for _, names in kept])

    return encode(samples[0]), encode(samples[1]), labels


# [backbone]
class TextBackbone(nn.Module):
    """From word numbers (B, N) to tokens (B, N, D), as a system takes them."""

    def __init__(self, encoder: BertModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> Tensor:
        """Return the encoder's last tokens; those of the padding mean nothing."""
        return self.encoder(input_ids=ids, attention_mask=(ids != PAD).long()).last_hidden_state


# [end]
def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train, print the loss of every epoch and the scores, and return the scores."""
    parser = argparse.ArgumentParser(prog="python -m examples.integrations.text_tagging", description=__doc__)
    parser.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    parser.add_argument("--rows", type=int, help="at most, to train on (default: all)")
    options = parser.parse_args(arguments)

    (ids, targets), (test_ids, test_targets), labels = load()
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))[: options.rows]
    ids, targets = ids[order], targets[order]
    print(f"{len(ids)} docstrings to train on, {len(test_ids)} of other packages to test on; labels {' '.join(labels)}")
    torch.manual_seed(0)
    # [model]
    config = BertConfig(
        vocab_size=WORDS + 2, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
    )
    backbone = TextBackbone(BertModel(config, add_pooling_layer=False))
    model = LatentContext(backbone, 64, len(labels), dim=64, units=16, depth=2, heads=4, width=128)
    # [loop]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(options.epochs):
        model.train()
        losses = []
        for rows in torch.randperm(len(ids)).split(32):
            valid = ids[rows] != PAD  # no label looks at padding
            loss = model.objective(model(ids[rows], targets[rows], valid=valid), targets[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        print(f"epoch {epoch + 1}  loss {torch.stack(losses).mean():.4f}")
    # [scores]
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(batch, valid=batch != PAD).logits for batch in test_ids.split(250)])
    scores = multilabel_scores(logits, test_targets, inputs="logits")
    chance = 100 * float(test_targets.mean(0)[test_targets.sum(0) > 0].mean())
    print(
        "  ".join(f"{name} {100 * scores[name]:.2f}" for name in ("mAP", "OF1", "CF1"))
        + f"  (mAP by chance {chance:.2f})"
    )
    return {**scores, "chance": chance / 100}


if __name__ == "__main__":
    main()
