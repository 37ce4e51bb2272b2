"""Features in a table, a random forest as the teacher: ``python -m examples.integrations.tabular --data yeast.npz``.

A forest has no logits, so the losses that distil compare probabilities. It judges each training row by the trees that
did not see it (out of bag): what it says of rows that it knows by heart is no more than their labels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.datasets import make_multilabel_classification
from sklearn.ensemble import RandomForestClassifier
from torch import Tensor

from examples.data import Dataset, Split, load_npz
from examples.models import perceptron
from examples.training import predict, score
from mlcorr import BinaryCrossEntropyLoss, MLDLoss, MultiOrderDependencyLoss


def made_up() -> Dataset:
    """Return rows that scikit-learn makes, few to train on: counts of words, in documents with several topics."""
    features, labels = make_multilabel_classification(
        1300, n_features=20, n_classes=8, allow_unlabeled=False, random_state=0
    )
    inputs = torch.from_numpy((features - features[:300].mean(0)) / features[:300].std(0)).float()
    targets = torch.from_numpy(labels).float()
    names = tuple(map(str, range(8)))
    return Dataset("made up", Split(inputs[:300], targets[:300]), Split(inputs[300:], targets[300:]), names)


# [teacher]
def forest_of(data: Split, trees: int) -> tuple[RandomForestClassifier, Tensor]:
    """Return a forest, and for every training row what the trees say that did not see it, (N, C)."""
    forest = RandomForestClassifier(trees, min_samples_leaf=3, oob_score=True, random_state=0)
    forest.fit(data.inputs.numpy(), data.targets.numpy())
    return forest, torch.from_numpy(forest.oob_decision_function_[:, 1]).float()  # (N, classes, C), classes 0 and 1


# [student]
def train(data: Dataset, teacher: Tensor | None, *, epochs: int, seed: int) -> dict[str, float]:
    """Return the scores of a student of the targets, and of the teacher's probabilities if there are any."""
    torch.manual_seed(seed)
    student = perceptron(data.train.inputs.shape[1], (64,), len(data.label_names), dropout=0.3)
    base, mld = BinaryCrossEntropyLoss(), MLDLoss(inputs="probabilities")
    dependency = MultiOrderDependencyLoss(orders=(2, 3), inputs="probabilities", normalization="labels")
    optimizer = torch.optim.AdamW(student.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(epochs):
        student.train()
        for rows in torch.randperm(len(data.train)).split(64):
            logits, targets = student(data.train.inputs[rows]), data.train.targets[rows]
            loss = base(logits, targets)
            if teacher is not None:
                own = logits.sigmoid()
                loss = loss + mld(own, teacher[rows]) + dependency(own, teacher[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return score(predict(student, data.evaluation.inputs), data.evaluation.targets)


# [end]
def main(arguments: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Train forest and students, and print and return the scores, of the students the mean over seeds."""
    parser = argparse.ArgumentParser(prog="python -m examples.integrations.tabular", description=__doc__)
    parser.add_argument("--data", metavar="FILE.npz", help="arrays features and labels (default: made-up rows)")
    parser.add_argument("--epochs", type=int, default=30, help="default: %(default)s")
    parser.add_argument("--trees", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="students of each kind (default: %(default)s)")
    options = parser.parse_args(arguments)

    data = load_npz(options.data) if options.data else made_up()
    forest, teacher = forest_of(data.train, options.trees)
    judged = np.stack([label[:, 1] for label in forest.predict_proba(data.evaluation.inputs.numpy())], axis=1)
    results = {"forest": score(torch.logit(torch.from_numpy(judged)), data.evaluation.targets)}
    for name, opinion in (("student of the labels", None), ("student of both", teacher)):
        runs = [train(data, opinion, epochs=options.epochs, seed=seed) for seed in range(options.seeds)]
        results[name] = {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}

    print(f"{data.name}: {len(data.train)} rows to train on, {len(data.label_names)} labels")
    for name, scores in results.items():
        print(f"{name:22}", "  ".join(f"{key} {100 * value:.2f}" for key, value in scores.items()))
    return results


if __name__ == "__main__":
    main()
