"""The students that the demo compares: what each of them is trained with, and how they are trained side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import product
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor

from examples.data import Dataset, Split
from examples.models import make_student
from examples.training import Objective, Recipe, predict, train
from mlcorr import BinaryCrossEntropyLoss, MLDLoss
from mlcorr.systems.mdkd import MDKDObjective

MLD_WEIGHT = 10.0


@dataclass(frozen=True)
class Student:
    """A row of the table: BCE + 10·MLD + the dependency terms of ``orders``, or less of it."""

    name: str
    distil: bool = True
    orders: tuple[int, ...] = ()
    normalization: str = "sequences"
    dependency_weight: float = 1.0


BCE = Student("BCE", distil=False)
MLD = Student("MLD")
STUDENTS = (
    BCE,
    MLD,
    Student("MDKD 2", orders=(2,)),
    Student("MDKD 2-3", orders=(2, 3)),
    Student("MDKD 2-4", orders=(2, 3, 4)),
    Student("MDKD 2-4 labels", orders=(2, 3, 4), normalization="labels"),
    # This weight was chosen, among 1, 3 and 10, by the mAP on validation scenes.
    Student("MDKD 2-4 labels x3", orders=(2, 3, 4), normalization="labels", dependency_weight=3.0),
)


@dataclass(frozen=True)
class Task:
    """What all students share: the data, what the teacher says of the training samples, and the recipe."""

    data: Dataset
    teacher_logits: Tensor
    recipe: Recipe


@dataclass(frozen=True)
class Run:
    """One trained student: its scores after every epoch and its logits on the evaluation samples."""

    student: str
    seed: int
    curve: list[dict[str, float]]
    logits: np.ndarray
    gradient_norms: dict[str, dict[str, float]]  # "untrained" and "trained" → term → norm; MDKD only


def make_objective(student: Student) -> Objective:
    """Return the loss of a student, a function of its logits, the teacher's logits and the targets."""
    if student.orders:
        return MDKDObjective(
            student.orders,
            mld_weight=MLD_WEIGHT,
            dependency_weight=student.dependency_weight,
            normalization=student.normalization,
        )
    bce, mld = BinaryCrossEntropyLoss(), MLDLoss()
    if student.distil:
        return lambda logits, teacher, target: bce(logits, target) + MLD_WEIGHT * mld(logits, teacher)
    return lambda logits, _, target: bce(logits, target)


def run_student(student: Student, seed: int, task: Task) -> Run:
    """Train one student; ``seed`` decides its first weights and the order of the samples, for every row the same."""
    data, recipe = task.data, task.recipe
    torch.manual_seed(seed)
    model = make_student(data.train.inputs, len(data.label_names)).to(data.train.targets.device)
    objective = make_objective(student)

    def gradient_norms(samples: int = 512) -> dict[str, float]:
        if not isinstance(objective, MDKDObjective):
            return {}
        logits = predict(model, data.train.inputs[:samples])
        norms = objective.gradient_norms(logits, task.teacher_logits[:samples], data.train.targets[:samples])
        return {term: float(norm) for term, norm in norms.items()}

    untrained = gradient_norms()
    curve = train(
        model, objective, data.train, data.evaluation, recipe=recipe, seed=seed, teacher_logits=task.teacher_logits
    )
    logits = predict(model, data.evaluation.inputs).cpu().numpy()
    return Run(student.name, seed, curve, logits, {"untrained": untrained, "trained": gradient_norms()})


def run_students(students: Sequence[Student], seeds: Sequence[int], task: Task, *, workers: int) -> Iterator[Run]:
    """Train every student with every seed and yield the runs as they finish; ``workers`` changes only how fast."""
    jobs = list(product(students, seeds))
    if workers == 1:
        yield from (run_student(student, seed, task) for student, seed in jobs)
        return
    # As bytes, the tensors do not travel through shared memory, of which containers have little.
    content = BytesIO()
    torch.save(asdict(task), content)
    with ProcessPoolExecutor(
        min(workers, len(jobs)), get_context("spawn"), initializer=_start_worker, initargs=(content.getvalue(),)
    ) as pool:
        try:
            for finished in as_completed([pool.submit(_run_in_worker, student, seed) for student, seed in jobs]):
                yield finished.result()
        finally:
            pool.shutdown(cancel_futures=True)  # if one fails, do not wait for the rest


def default_workers(device: torch.device) -> int:
    """Return the number of processes to train in: one a core, or one beside an accelerator."""
    if device.type != "cpu":
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


_task: Task  # of a worker process


def _start_worker(task: bytes) -> None:
    global _task
    torch.set_num_threads(1)
    content = torch.load(BytesIO(task), weights_only=True)
    splits = {name: Split(**content["data"].pop(name)) for name in ("train", "evaluation")}
    _task = Task(Dataset(**content["data"], **splits), content["teacher_logits"], Recipe(**content["recipe"]))


def _run_in_worker(student: Student, seed: int) -> Run:
    return run_student(student, seed, _task)
