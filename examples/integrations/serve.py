"""A trained system as a file for serving, by ``torch.export`` or ONNX: ``python -m examples.integrations.serve``.

The files hold the network from images to logits, for any number of images; neither needs mlcorr to run.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from examples.data import Split, digit_scenes
from examples.fit import predict
from examples.models import make_backbone
from mlcorr.systems.latent_context import LatentContext
from mlcorr.systems.oprl import OPRL


def train(split: Split, system: str, epochs: int) -> nn.Module:
    """Return a system that learned, as it is served: in evaluation mode, without what only training needs."""
    torch.manual_seed(0)
    backbone, channels = make_backbone(split.inputs)
    model: nn.Module = OPRL(backbone, channels, split.targets.shape[1], encoder_width=128)
    if system == "latent_context":
        model = LatentContext(backbone, channels, split.targets.shape[1], dim=64, units=16, depth=2, heads=4, width=128)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(split)).split(32):
            images, targets = split.inputs[rows], split.targets[rows]
            output = model(images, targets) if system == "latent_context" else model(images)
            optimizer.zero_grad()
            model.objective(output, targets).backward()
            optimizer.step()
    model = model.deploy() if isinstance(model, LatentContext) else model
    return model.to(memory_format=torch.contiguous_format).eval()  # torch.export.save warns of channels last


# [export]
class Logits(nn.Module):
    """A system that returns its logits alone."""

    def __init__(self, system: nn.Module) -> None:
        super().__init__()
        self.system = system

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits (B, C)."""
        return self.system(images).logits


def export(system: nn.Module, images: Tensor, folder: Path) -> tuple[Path, Path]:
    """Write the system for any number of such images, as a program of PyTorch and as ONNX; return the files."""
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(Logits(system), (images,), dynamic_shapes=batch)
    files = folder / "system.pt2", folder / "system.onnx"
    torch.export.save(program, files[0])
    names = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(program, (images,), files[1], dynamo=True, verbose=False, **names)
    return files


# [end]
def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Train on scenes of digits, export, and print and return by how much the files' logits differ from ours."""
    parser = argparse.ArgumentParser(prog="python -m examples.integrations.serve", description=__doc__)
    parser.add_argument("--system", choices=("oprl", "latent_context"), default="oprl", help="default: %(default)s")
    parser.add_argument("--epochs", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--scenes", type=int, default=1000, help="to train on (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("served"), help="folder (default: %(default)s)")
    options = parser.parse_args(arguments)

    data = digit_scenes(num_scenes=(options.scenes, 0, 64), canvas=32)
    system = train(data.train, options.system, options.epochs)
    options.output.mkdir(parents=True, exist_ok=True)
    program_file, onnx_file = export(system, data.train.inputs[:3], options.output)
    # [run]
    program = torch.export.load(program_file).module()
    session = onnxruntime.InferenceSession(onnx_file, providers=["CPUExecutionProvider"])
    differences = {}
    for size in (1, 2, 7, 64):
        images = data.evaluation.inputs[:size]
        expected = predict(system, Split(images, data.evaluation.targets[:size])).numpy()
        for name, logits in (
            ("torch.export", program(images).detach().numpy()),
            ("onnxruntime", session.run(["logits"], {"images": images.numpy()})[0]),
        ):
            differences[f"{name}, {size} images"] = float(np.abs(logits - expected).max())
    # [done]
    for name, difference in differences.items():
        print(f"{name}: logits differ by {difference:.1e} at most")
    return differences


if __name__ == "__main__":
    main()
