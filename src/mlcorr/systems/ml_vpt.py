"""ML-VPT: prompts for groups of labels in a frozen vision transformer, and label-aware mixing of experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mlcorr._checks import (
    check_choice,
    check_data,
    check_flag,
    check_integer,
    check_number,
    check_sequence,
    check_tensor,
)
from mlcorr._distributed import SharesGroup, check_group, global_sum
from mlcorr._extra_state import decoded, encoded
from mlcorr._loading import WholeState
from mlcorr._targets import check_target
from mlcorr.grouping import LabelGroups
from mlcorr.losses.asymmetric import AsymmetricLoss
from mlcorr.systems._gated_experts import GatedExperts, PromptAdapters
from mlcorr.systems._group_prompts import GroupPrompts
from mlcorr.systems._outputs import check_output
from mlcorr.systems.vit import VisionTransformer, check_vit

_FROZEN = "backbone."
_TERMS = ("co", "dis", "co_gate", "dis_gate")


class MLVPTOutput(NamedTuple):
    """What :class:`MLVPT` returns; the prediction is ``logits.sigmoid()``.

    All are float32, or float64 of a float64 model.

    Attributes:
        logits: (B, L), the mean of the two branches.
        co_logits: (B, L), of the co-occurrence groups.
        dis_logits: (B, L), of the dis-occurrence groups.
        co_gate_logits: (B, L), what the gates alone say; to train with.
        dis_gate_logits: (B, L), likewise.
        gates: (B, 2, L, E), each label's weights of its group's experts, which add up to 1; co-occurrence first.
    """

    logits: Tensor
    co_logits: Tensor
    dis_logits: Tensor
    co_gate_logits: Tensor
    dis_gate_logits: Tensor
    gates: Tensor


class MLVPT(SharesGroup, WholeState):
    r"""Prompts for each group of labels in every block, an adapter a prompt, gates and classifiers for each label.

    The defaults are those of the authors' code. With :math:`P = 2TE` prompts, :math:`n` blocks and adapters of width
    :math:`h`, what is trained has

    .. math:: nPd + P(2dh + h + d) + 2LEd + 2L(d + 1)

    parameters: prompts, adapters, gates, classifiers. The transformer is frozen where it stands: ``requires_grad`` of
    its parameters is set to False, and it stays in evaluation mode whatever the mode of this module. It may be kept in
    half precision, ``model.backbone.to(torch.bfloat16)``. An average of the weights must not average buffers, among
    which are the groups: ``AveragedModel`` without ``use_buffers``.

    Args:
        vit: A :class:`mlcorr.systems.vit.VisionTransformer`, such as :func:`mlcorr.systems.backbones.from_transformers`
            and :func:`mlcorr.systems.backbones.from_timm` make of one.
        groups: The L labels in T co-occurrence and T dis-occurrence groups. Of an empty group the prompts are tokens
            like others, and the adapters get gradients of exactly 0.
        experts: E, prompts of each group and relation; at least 1.
        bottleneck: h; at least 1.
        prompt_output: "norm", the prompts' tokens are taken after the last norm, as the authors do for ViT-B trained
            on ImageNet-1k and for DINOv2; "pre_norm", before it, as for ImageNet-21k, MAE and MoCo v3.
        gate_loss_weight: Factor >= 0 on the two terms of the gates' logits; 0 gives the paper's loss of two terms.
        gamma_neg: Of the asymmetric loss, for all terms; see :class:`mlcorr.AsymmetricLoss`.
        gamma_pos: Likewise.
        clip: Likewise.
        checkpoint_blocks: Whether the backward pass computes each block anew, so that it needs the memory of one.
        group: Process group over which the loss is that of the whole batch.

    Attributes:
        backbone: ``vit``.
        label_names: Those of ``groups``.

    Shape:
        - images: what ``vit`` takes.
        - Output: :class:`MLVPTOutput`.

    Raises:
        TypeError: An argument of the wrong type; ``vit`` is no plain vision transformer.
        ValueError: A number outside its range.

    Differs from the authors' code:
        Any number of experts and groups, and any device. The gates have no bias, which there is unused. Features of the
        labels are not formed: experts are weighed after the classifier, which is the same. Unknown labels count
        nowhere. Prompts stand after all leading tokens, which is the same too since they have no position. The bound
        from which prompts are drawn counts the channels that the patches have, there always 3.

    Reference:
        Ma et al., "Correlative and Discriminative Label Grouping for Multi-Label Visual Prompt Tuning", CVPR 2025;
        Jia et al., "Visual Prompt Tuning", ECCV 2022.

    Example:
        >>> import torch
        >>> from mlcorr import LabelGroups
        >>> from mlcorr.systems.ml_vpt import MLVPT
        >>> class Tiny(torch.nn.Module):  # stands for from_transformers(transformers.ViTModel(...))
        ...     out_channels, prefix_tokens, patch_dim = 8, 0, 3 * 8 * 8
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.patches = torch.nn.Conv2d(3, 8, 8, 8)
        ...         layers = [torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2)]
        ...         self.blocks, self.norm = torch.nn.ModuleList(layers), torch.nn.LayerNorm(8)
        ...     def embed(self, images):
        ...         return self.patches(images).flatten(2).mT
        >>> groups = LabelGroups(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), None, num_groups=2)
        >>> model = MLVPT(Tiny(), groups, experts=3)
        >>> images, target = torch.randn(2, 3, 32, 48), torch.tensor([[1, 0, 0, -1], [0, 1, 0, 0]])
        >>> output = model(images)
        >>> output.logits.shape, output.gates.shape
        (torch.Size([2, 4]), torch.Size([2, 2, 4, 3]))
        >>> model.objective(output, target).backward()
        >>> len(model.trainable_state_dict()), all(each.grad is None for each in model.backbone.parameters())
        (14, True)
    """

    co_groups: Tensor
    dis_groups: Tensor

    def __init__(
        self,
        vit: VisionTransformer,
        groups: LabelGroups,
        *,
        experts: int = 3,
        bottleneck: int = 5,
        prompt_output: Literal["norm", "pre_norm"] = "norm",
        gate_loss_weight: float = 1.0,
        gamma_neg: float = 2.0,
        gamma_pos: float = 0.0,
        clip: float = 0.0,
        checkpoint_blocks: bool = False,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        vit = check_vit("vit", vit)
        if not isinstance(groups, LabelGroups):
            raise TypeError(f"groups: expected mlcorr.LabelGroups, got {type(groups).__name__}")
        self.num_labels, self.num_groups = groups.num_labels, groups.num_groups
        self.label_names = groups.names
        self.experts = check_integer("experts", experts, minimum=1)
        bottleneck = check_integer("bottleneck", bottleneck, minimum=1)
        check_choice("prompt_output", prompt_output, ("norm", "pre_norm"))
        self.prompt_output = prompt_output
        self.gate_loss_weight = check_number("gate_loss_weight", gate_loss_weight, minimum=0.0)
        self.checkpoint_blocks = check_flag("checkpoint_blocks", checkpoint_blocks)
        self.group = check_group("group", group)
        loss = AsymmetricLoss(gamma_neg=gamma_neg, gamma_pos=gamma_pos, clip=clip, reduction="sum")

        self.backbone = cast(nn.Module, vit)
        half = self.num_groups * self.experts
        self.prompts = GroupPrompts(vit, 2 * half)
        self.adapters = PromptAdapters(2 * half, vit.out_channels, bottleneck)
        self.co = GatedExperts(groups.co, self.num_groups, self.experts, vit.out_channels)
        self.dis = GatedExperts(groups.dis, self.num_groups, self.experts, vit.out_channels)
        self.register_buffer("co_groups", groups.co.clone())
        self.register_buffer("dis_groups", groups.dis.clone())
        self._loss = loss
        self.backbone.requires_grad_(False).eval()  # last: whoever passes something wrong keeps his model as it was

    def forward(self, images: Tensor) -> MLVPTOutput:
        """Return logits, those of the branches and of the gates, and the gates."""
        vit = cast(VisionTransformer, self.backbone)
        tokens = self.prompts(vit, images, recompute=self.checkpoint_blocks)
        if self.prompt_output == "norm":
            tokens = vit.norm(tokens)
        tokens = tokens.to(self.adapters.down.dtype)  # the frozen part may be kept in half precision
        adapted = self.adapters(tokens)
        half = tokens.shape[1] // 2
        co, co_gate, co_share = self.co(tokens[:, :half], adapted[:, :half])
        dis, dis_gate, dis_share = self.dis(tokens[:, half:], adapted[:, half:])
        gates = torch.stack([co_share, dis_share], dim=1)
        return MLVPTOutput((co + dis) / 2, co, dis, co_gate, dis_gate, gates)

    def objective(self, output: MLVPTOutput, target: Tensor) -> Tensor:
        """Return 1000 times the asymmetric loss, the mean over known entries, of both branches and both gates.

        Args:
            output: What :meth:`forward` returned.
            target: (B, L), 0/1; −1 is unknown and counts nowhere.

        Raises:
            ValueError: Shapes that do not fit.
        """
        return torch.stack(list(self.terms(output, target).values())).sum()

    def terms(self, output: MLVPTOutput, target: Tensor) -> dict[str, Tensor]:
        """Return the weighted summands of the objective: "co", "dis", and unless without weight "co_gate", "dis_gate".

        They are tensors in the graph, and nothing is synchronised until the caller reads one.
        """
        check_output(output, MLVPTOutput, "logits", *(f"{name}_logits" for name in _TERMS))
        target = check_target("target", target, "logits", output.logits)
        weights = (1.0, 1.0, self.gate_loss_weight, self.gate_loss_weight)
        logits = (output.co_logits, output.dis_logits, output.co_gate_logits, output.dis_gate_logits)
        used = [(name, weight, each) for name, weight, each in zip(_TERMS, weights, logits, strict=True) if weight]
        totals = torch.stack([1000 * weight * self._loss(each, target) for _, weight, each in used])
        known = (target >= 0).sum().to(totals.dtype)
        whole = global_sum(torch.cat([totals, known.unsqueeze(0)]), self.group)
        means = whole[:-1] / whole[-1].clamp(min=1)
        return {name: mean for (name, _, _), mean in zip(used, means, strict=True)}

    def train(self, mode: bool = True) -> MLVPT:
        """Set the mode of everything but the backbone, which stays in evaluation mode."""
        super().train(check_flag("mode", mode))
        self.backbone.eval()
        return self

    def trainable_state_dict(self) -> dict[str, Any]:
        """Return ``state_dict()`` without the backbone: prompts, adapters, gates, classifiers, and the groups."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(_FROZEN)}

    def load_trainable_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load what :meth:`trainable_state_dict` returned; the backbone stays as it is. All is loaded or nothing.

        Raises:
            ValueError: The state is of other groups, label names, sizes or parts.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected what trainable_state_dict returns, got {type(state).__name__}")
        own = self.trainable_state_dict()
        if state.keys() != own.keys():
            lacking, foreign = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys(), key=str)
            raise ValueError(f"state: expected what trainable_state_dict returns; lacks {lacking}, has also {foreign}")
        self._check_groups(state, "")
        for name, value in own.items():
            if name == "_extra_state":  # as long as the names are
                continue
            if not isinstance(state[name], Tensor):
                kind = type(state[name]).__name__
                raise ValueError(f"state: expected {name} of the shape {tuple(value.shape)}, got {kind}")
            found = check_data(f"state[{name!r}]", check_tensor(f"state[{name!r}]", state[name]))
            if found.shape != value.shape:
                shape = tuple(found.shape)
                raise ValueError(f"state: expected {name} of the shape {tuple(value.shape)}, got {shape}")
        self.load_state_dict(dict(state), strict=False)

    def get_extra_state(self) -> Tensor:
        """Return names of the labels and the number of groups, as bytes of JSON, for ``state_dict``."""
        return encoded({"names": self.label_names, "num_groups": self.num_groups})

    def set_extra_state(self, state: Any) -> None:
        """Change nothing: a state with other names or groups is refused before anything is loaded."""

    def _refuse(self, state: Mapping[str, Any], prefix: str) -> None:
        self._check_groups(state, prefix)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._check_groups(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_groups(self, state: Mapping[str, Any], prefix: str) -> None:
        """Raise unless the state is of these groups of these labels."""
        extra = decoded(state[f"{prefix}_extra_state"]) if f"{prefix}_extra_state" in state else {}
        names = extra.get("names")
        if names is not None:
            names = check_sequence("state: names", names)
        if names is not None and self.label_names is not None and tuple(names) != self.label_names:
            differing = [pair for pair in zip(names, self.label_names, strict=False) if pair[0] != pair[1]]
            first = (
                f"; the first that differs: {differing[0][0]!r} there, {differing[0][1]!r} here" if differing else ""
            )
            count = f"{len(names)} names for {self.num_labels}"
            raise ValueError(f"state: expected the same labels in the same order, got {count}{first}")
        if extra and extra.get("num_groups") != self.num_groups:
            raise ValueError(f"state: expected {self.num_groups} groups, got {extra.get('num_groups')}")
        for name, experts in (("co_groups", self.co), ("dis_groups", self.dis)):
            found, own = state.get(prefix + name), experts.groups
            if isinstance(found, Tensor):
                check_data(f"state[{name!r}]", check_tensor(f"state[{name!r}]", found))
            if isinstance(found, Tensor) and not torch.equal(found.to(own.device), own):
                differ = (
                    f"{int((found.to(own.device) != own).sum())} of them"
                    if found.shape == own.shape
                    else "their number"
                )
                raise ValueError(
                    f"state: expected the same {name} of the labels, got others ({differ}); build the model with the "
                    "groups that the state was trained with"
                )

    def extra_repr(self) -> str:
        """Return the configuration for ``print``."""
        return (
            f"num_labels={self.num_labels}, num_groups={self.num_groups}, experts={self.experts}, "
            f"prompt_output={self.prompt_output!r}, gate_loss_weight={self.gate_loss_weight:g}"
        )
