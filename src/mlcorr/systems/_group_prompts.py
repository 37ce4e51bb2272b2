"""Deep prompts: learned tokens that stand beside the image's in every block of a frozen vision transformer."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mlcorr.systems.vit import VisionTransformer, needless_arguments


class GroupPrompts(nn.Module):
    """P prompts a block; what a block gives out at their places is dropped, and the next block's prompts come in.

    Args:
        vit: The transformer that the prompts are for; its parameters are no part of this module.
        count: P.

    Attributes:
        prompts: (blocks, P, D), begun uniform in ±√(6 / (patch_dim + D)).

    Shape:
        - images: what ``vit`` takes.
        - Output: (B, P, D), what the last block gives out at the prompts' places, before the last norm.
    """

    def __init__(self, vit: VisionTransformer, count: int) -> None:
        super().__init__()
        blocks = list(vit.blocks)
        if not blocks:
            raise ValueError("vit: expected at least one block, got none")
        self.prompts = nn.Parameter(torch.empty(len(blocks), count, vit.out_channels))
        self._fan = vit.patch_dim + vit.out_channels
        self._prefix = vit.prefix_tokens
        self._further = [needless_arguments(block) for block in blocks]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the prompts as the weights of the patch embedding would be drawn (Xavier-uniform)."""
        bound = (6 / self._fan) ** 0.5
        nn.init.uniform_(self.prompts, -bound, bound)

    def forward(self, vit: VisionTransformer, images: Tensor, *, recompute: bool = False) -> Tensor:
        """Return the prompts' tokens; ``recompute`` keeps only what goes from block to block for the backward pass."""
        # Nothing up to here has a gradient, so that nothing is kept: frozen parameters are what makes it cheap.
        tokens, width = vit.embed(images), self.prompts.shape[2]
        if tokens.dim() != 3 or tokens.shape[2] != width:
            raise ValueError(f"vit: expected embed to return tokens (B, N, {width}), got {tuple(tokens.shape)}")
        prefix, count = self._prefix, self.prompts.shape[1]
        leading, patches = tokens[:, :prefix], tokens[:, prefix:]
        for block, prompts, further in zip(vit.blocks, self.prompts, self._further, strict=True):
            run = partial(self._run, block, further)
            if recompute and torch.is_grad_enabled():
                tokens = checkpoint(run, leading, prompts, patches, use_reentrant=False)
            else:
                tokens = run(leading, prompts, patches)
            leading, own, patches = tokens[:, :prefix], tokens[:, prefix : prefix + count], tokens[:, prefix + count :]
        return own

    @staticmethod
    def _run(block: nn.Module, further: tuple[None, ...], leading: Tensor, prompts: Tensor, patches: Tensor) -> Tensor:
        """Return all tokens, those of the prompts among them, after a block."""
        rows = prompts.to(patches.dtype).expand(patches.shape[0], -1, -1)
        output = block(torch.cat([leading, rows, patches], dim=1), *further)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        blocks, count, width = self.prompts.shape
        return f"blocks={blocks}, prompts={count}, dim={width}"
