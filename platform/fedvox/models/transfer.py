"""Starting from weights of another model: other channels, classes, patch size or kernels.

    report = load_pretrained(model, weights, structures=("background", "liver"), pretrained_structures=(...))
    print(report)

Tensors are matched by name, and one that does not fit is brought to its new shape where there is a sound way:

- another number of image channels: the first convolution's kernels are summed over the old channels and shared out
  over the new ones, so that a new image with equal channels gives the old response;
- other classes: the head's rows go to the structures of the same name, and other structures start anew;
- larger or smaller kernels: trilinear, as in UpKern; from or to a single voxel along an axis so that images which
  are constant along it give the old response;
- another patch size: learned positions are resized trilinearly on their grid;
- GRN by sum instead of mean, or the reverse: γ is multiplied or divided by the number of channels.

What is left keeps its initialisation. Nothing happens silently: the report has an entry for every tensor.

Sources: UpKern, MedNeXt (arXiv:2303.09975); channel inflation, I3D (arXiv:1705.07750).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.errors import CheckpointError
from fedvox.models.backbone import Backbone, Triple
from fedvox.models.normalization import GlobalResponseNorm
from fedvox.models.primus import LearnedPosition

Action = Literal["loaded", "resized", "inflated", "matched", "new"]


@dataclass(frozen=True)
class Entry:
    """What became of one tensor of the model.

    Attributes:
        name: in the model's state dict; it begins with stem, encoder, decoder or heads.
        action: loaded as it was; resized (kernels, positions, GRN); inflated (image channels); matched (classes by
            name); or new, which keeps its initialisation.
        numbers: how many numbers it has.
        note: why, and from which shape to which.
    """

    name: str
    action: Action
    numbers: int
    note: str = ""

    @property
    def part(self) -> str:
        """stem, encoder, decoder or heads."""
        return self.name.split(".", 1)[0]


@dataclass(frozen=True)
class LoadReport:
    """What `load_pretrained` did.

    Attributes:
        entries: one per tensor of the model.
        unused: names of pretrained tensors that the model does not have.
    """

    entries: tuple[Entry, ...]
    unused: tuple[str, ...]

    def names(self, action: Action) -> list[str]:
        """The tensors with which this was done."""
        return [entry.name for entry in self.entries if entry.action == action]

    def share(self, part: str | None = None) -> float:
        """How much of the model, or of one part, does not start anew; 0 to 1, by count of numbers."""
        of_part = [entry for entry in self.entries if part in (None, entry.part)]
        kept = sum(entry.numbers for entry in of_part if entry.action != "new")
        return kept / max(1, sum(entry.numbers for entry in of_part))

    def as_dict(self) -> dict[str, Any]:
        """Plain data for a run's log: counts, shares, and every tensor that was not simply loaded."""
        return {
            "share": {part: self.share(part) for part in ("stem", "encoder", "decoder", "heads")},
            "changed": [vars(entry) for entry in self.entries if entry.action != "loaded"],
            "loaded": len(self.names("loaded")),
            "unused": list(self.unused),
        }

    def __str__(self) -> str:
        """A line per part, and one per tensor that was not simply loaded."""
        parts = sorted({entry.part for entry in self.entries})
        lines = [f"{part}: {self.share(part):.1%} from the pretrained weights" for part in parts]
        lines += [f"  {e.action} {e.name}: {e.note}" for e in self.entries if e.action != "loaded"]
        return "\n".join([*lines, *(f"  unused {name}" for name in self.unused)])


def load_pretrained(
    model: Backbone,
    weights: Mapping[str, Tensor],
    *,
    pretrained_config: Any = None,
    structures: Sequence[str] | None = None,
    pretrained_structures: Sequence[str] | None = None,
    keep_heads: bool = False,
    least_encoder_share: float = 0.5,
) -> LoadReport:
    """Copy pretrained weights into a model, adapted where shapes differ.

    Args:
        model: a freshly built backbone; changed in place.
        weights: its counterpart's state dict, under our names (see `upstream.translate` for others).
        pretrained_config: the config dataclass that the weights belong to; tells the old patch size and GRN.
        structures: names of the model's output channels, background first.
        pretrained_structures: names of the output channels in `weights`. With both, head rows are matched by name.
        keep_heads: without names, copy the heads as they are (same task), instead of starting them anew.
        least_encoder_share: refuse weights that fill less than this share of the encoder.

    Returns:
        What was done with every tensor.

    Raises:
        CheckpointError: too little of the encoder fits (what differs is listed), names do not match the heads'
            channels, or the old patch size is needed and unknown.
    """
    transfer = _Transfer(model, pretrained_config, structures, pretrained_structures, keep_heads)
    state = model.state_dict()
    entries, adapted = [], {}
    for name, target in state.items():
        value, action, note = transfer.fit(name, weights.get(name), target)
        adapted[name] = value.detach().to(target)
        entries.append(Entry(name, action, target.numel(), note))
    report = LoadReport(tuple(entries), tuple(sorted(weights.keys() - state.keys())))
    if report.share("encoder") < least_encoder_share:
        raise _does_not_fit(report)
    model.load_state_dict(adapted)
    return report


def _does_not_fit(report: LoadReport) -> CheckpointError:
    """The error that lists what differs, most of it."""
    differing = [f"{e.name} ({e.note})" for e in report.entries if e.action == "new" and e.part == "encoder"]
    more = f" and {len(differing) - 5} more" if len(differing) > 5 else ""
    unused = f"; not in this model: {', '.join(report.unused[:5])}" if report.unused else ""
    return CheckpointError(
        f"the weights fit only {report.share('encoder'):.0%} of the encoder; they differ in "
        f"{', '.join(differing[:5])}{more}{unused}",
        "build the model that the weights belong to (name, width, blocks, expansions)",
    )


@dataclass(frozen=True)
class _Transfer:
    """The rules of `load_pretrained`, for one model."""

    model: Backbone
    pretrained_config: Any
    structures: Sequence[str] | None
    pretrained_structures: Sequence[str] | None
    keep_heads: bool

    def fit(self, name: str, old: Tensor | None, target: Tensor) -> tuple[Tensor, Action, str]:
        """The tensor to load under a name, what was done, and why."""
        if old is None:
            return target, "new", "the pretrained weights have no such tensor"
        module = self.model.get_submodule(name.rpartition(".")[0])
        if name.startswith("heads."):
            return self._fit_head(old, target, module)
        if isinstance(module, LearnedPosition):
            return self._fit_position(old, target)
        if isinstance(module, GlobalResponseNorm) and old.shape == target.shape:
            return self._fit_grn(name, old, module)
        if old.shape == target.shape:
            return old, "loaded", ""
        change = f"{tuple(old.shape)} to {tuple(target.shape)}"
        if name.startswith("stem.") and _differs_in(old, target) == {1}:
            return inflate_channels(old, target.shape[1]), "inflated", f"image channels, {change}"
        if old.ndim == target.ndim == 5 and _differs_in(old, target) <= {2, 3, 4}:
            size: Triple = (target.shape[2], target.shape[3], target.shape[4])
            blocks = isinstance(module, nn.ConvTranspose3d) and module.kernel_size == module.stride
            return resize_kernel(old, size, blocks=blocks), "resized", f"kernel, {change}"
        return target, "new", f"shape {change}"

    def _fit_head(self, old: Tensor, target: Tensor, module: nn.Module) -> tuple[Tensor, Action, str]:
        """Rows of the head by the names of their structures."""
        axis = 1 if isinstance(module, nn.ConvTranspose3d) and target.ndim > 1 else 0
        if self.structures is None or self.pretrained_structures is None:
            if self.keep_heads and old.shape == target.shape:
                return old, "loaded", ""
            reason = (
                f"shape {tuple(old.shape)} to {tuple(target.shape)}" if self.keep_heads else "another task"
            )
            return target, "new", reason
        self._check_names(old.shape[axis], target.shape[axis])
        if _differs_in(old, target) - {axis}:
            return target, "new", f"shape {tuple(old.shape)} to {tuple(target.shape)}"
        places = {_plain(name): row for row, name in enumerate(self.pretrained_structures)}
        shared = [
            (row, places[_plain(name)]) for row, name in enumerate(self.structures) if _plain(name) in places
        ]
        value = target.detach().clone()
        for row, place in shared:
            value.select(axis, row).copy_(old.select(axis, place))
        anew = [name for name in self.structures if _plain(name) not in places]
        note = f"{len(shared)} structures by name" + (f"; new: {', '.join(anew)}" if anew else "")
        return value, "matched" if shared else "new", note

    def _check_names(self, old: int, new: int) -> None:
        """As many names as output channels, on both sides."""
        pairs = (
            (old, self.pretrained_structures, "pretrained_structures"),
            (new, self.structures, "structures"),
        )
        for channels, names, argument in pairs:
            if names is not None and len(names) != channels:
                raise CheckpointError(
                    f"{argument} names {len(names)} structures, but the head has {channels} output channels",
                    f"give {channels} names in {argument}, background first",
                )

    def _fit_position(self, old: Tensor, target: Tensor) -> tuple[Tensor, Action, str]:
        """Learned positions on another grid."""
        if old.shape[2] != target.shape[2]:
            return target, "new", f"shape {tuple(old.shape)} to {tuple(target.shape)}"
        old_grid = self._old_grid(old.shape[1])
        new_grid: Triple = self.model.config.grid  # type: ignore[attr-defined]  # only Primus has positions
        if old_grid == new_grid:
            return old, "loaded", ""
        return (
            resize_positions(old, old_grid, new_grid),
            "resized",
            f"positions, {old_grid} to {new_grid} tokens",
        )

    def _old_grid(self, tokens: int) -> Triple:
        """The grid of the pretrained tokens: the config's, or a cube."""
        if self.pretrained_config is not None:
            grid: Triple = self.pretrained_config.grid
            return grid
        edge = round(tokens ** (1 / 3))
        if edge**3 != tokens:
            raise CheckpointError(
                f"the pretrained positions are {tokens} tokens, which is no cube: their patch size is unknown",
                "give pretrained_config with the patch_size of the pretraining",
            )
        return (edge, edge, edge)

    def _fit_grn(self, name: str, old: Tensor, module: GlobalResponseNorm) -> tuple[Tensor, Action, str]:
        """γ where the divisor is a sum in one network and a mean in the other."""
        before = getattr(self.pretrained_config, "grn", None) or module.reduce
        if before == module.reduce or not name.endswith(".gamma"):
            return old, "loaded", ""
        channels = old.numel()
        factor = channels if before == "mean" else 1 / channels
        return old * factor, "resized", f"GRN by {before} to {module.reduce} of {channels} channels"


def inflate_channels(weight: Tensor, channels: int) -> Tensor:
    """Kernels (out, C, D, H, W) for another number of image channels.

    The sum over channels stays: an image whose channels are all equal gives what it gave before.
    """
    return (weight.sum(1, keepdim=True) / channels).expand(-1, channels, -1, -1, -1).contiguous()


def resize_kernel(weight: Tensor, size: Triple, *, blocks: bool = False) -> Tensor:
    """Kernels (out, in, D, H, W) with other edge lengths.

    Along each axis: 1 to k puts the kernel in the middle of zeros, and k to 1 sums it up, so that an image that is
    constant along the axis gives the same response; other lengths are interpolated linearly (UpKern).

    Args:
        weight: the kernels.
        size: new edge lengths (D, H, W).
        blocks: of a transposed convolution whose stride is its kernel. Its voxels do not add up but lie side by
            side: 1 to k repeats them, and k to 1 takes their mean.
    """
    for axis, new in enumerate(size, start=2):
        old = weight.shape[axis]
        if old == new:
            continue
        if new == 1:
            weight = weight.mean(axis, keepdim=True) if blocks else weight.sum(axis, keepdim=True)
        elif old == 1 and blocks:
            weight = weight.repeat_interleave(new, dim=axis)
        elif old == 1:
            before = new // 2
            pad = [0] * (2 * (4 - axis)) + [before, new - 1 - before]
            weight = F.pad(weight, pad)
        else:
            edges = [*weight.shape[2:]]
            edges[axis - 2] = new
            weight = F.interpolate(weight.float(), size=edges, mode="trilinear", align_corners=False)
    return weight


def resize_positions(positions: Tensor, old_grid: Triple, new_grid: Triple) -> Tensor:
    """Learned positions (1, tokens, width), trilinearly from one grid of tokens (d, h, w) to another."""
    on_grid = positions.float().transpose(1, 2).unflatten(2, old_grid)  # type: ignore[no-untyped-call]
    resized = F.interpolate(on_grid, size=new_grid, mode="trilinear", align_corners=False)
    return resized.flatten(2).transpose(1, 2)


def _differs_in(a: Tensor, b: Tensor) -> set[int]:
    """The axes along which two shapes differ; all of them where the numbers of axes do."""
    if a.ndim != b.ndim:
        return set(range(max(a.ndim, b.ndim)))
    return {axis for axis, (m, n) in enumerate(zip(a.shape, b.shape, strict=True)) if m != n}


def _plain(name: str) -> str:
    """A structure's name without regard to case and separators."""
    return name.lower().replace("-", "_").replace(" ", "_")
