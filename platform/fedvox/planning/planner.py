"""nnU-Net's planning rules, each decision with its reason.

    spacing        median of the cases; the 10th percentile along the axis of thick slices
    patch          a box of 256³ voxels in the aspect of 1/spacing, cut to the median case, then shortened where it is
                   longest relative to the median case, until the network's feature maps fit the memory
    topology       see `topology`; follows every change of the patch
    batch          what the memory still holds, at least 2, at most a share of the data set
    low resolution where a patch sees less than a quarter of the median case: spacing grows until it does

Equal to the planners of nnU-Net 2.8 on every field (tests/fedvox/planning). Sources: Isensee et al. 2021, nnU-Net,
supplementary notes 2 and 4; Isensee et al. 2024, "nnU-Net Revisited" (ResEnc presets).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedvox.data.fingerprint import target_spacing
from fedvox.errors import ConfigError
from fedvox.planning.facts import DatasetFacts
from fedvox.planning.footprint import UNetShape, feature_map_elements
from fedvox.planning.plan import Configuration, Decision, ExperimentPlan
from fedvox.planning.presets import (
    FIRST_BOX,
    LOWRES_BELOW,
    LOWRES_STEP,
    LOWRES_WORTH,
    MASKED_BELOW,
    MIN_BATCH,
    REFERENCE_BATCH,
    Preset,
    features,
)
from fedvox.planning.topology import Topology, topology_for

_SCHEMES = {
    "ct": "CTNormalization",
    "nonorm": "NoNormalization",
    "zscore": "ZScoreNormalization",
    "rescale_to_0_1": "RescaleTo01Normalization",
    "rgb_to_0_1": "RGBTo01Normalization",
}  # by channel name; every other channel takes the z-score


def plan_experiment(
    facts: DatasetFacts,
    preset: Preset,
    *,
    memory_gib: float | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
) -> ExperimentPlan:
    """Plans 3d_fullres, 2d, and where they are worth it 3d_lowres and the cascade.

    Args:
        facts: of the data set.
        preset: network and reference memory.
        memory_gib: GPU memory to plan for; None for the preset's.
        spacing_mm: (D, H, W) of full resolution; None decides by the rule.

    Raises:
        ConfigError: no patch fits the memory, or a given spacing is not positive.
    """
    planner = _Planner(facts, preset, memory_gib or preset.memory_gib)
    return planner.plan(spacing_mm)


def _per_axis(values: Sequence[float], digits: int = 4) -> str:
    return " × ".join(f"{value:.{digits}g}" for value in values)


@dataclass(frozen=True)
class _Grid:
    """One resolution: spacing and median shape (transposed), and the name of its configuration."""

    name: str
    spacing_mm: tuple[float, ...]
    median_shape: tuple[float, ...]
    voxels_in_dataset: float


@dataclass(frozen=True)
class _Planner:
    facts: DatasetFacts
    preset: Preset
    memory_gib: float

    def plan(self, spacing_mm: tuple[float, float, float] | None) -> ExperimentPlan:
        facts = self.facts
        spacing, decisions = self._spacing(spacing_mm)
        coarsest = int(np.argmax(spacing))
        order = (coarsest, *(axis for axis in range(3) if axis != coarsest))
        decisions.append(
            Decision(
                "transpose",
                str(order),
                f"axis {coarsest} is the coarsest and comes first, (D, H, W) being 0, 1, 2",
            )
        )
        shapes = [
            [round(old / new * size) for old, new, size in zip(own, spacing, shape, strict=True)]
            for own, shape in zip(facts.spacings_mm, facts.shapes, strict=True)
        ]
        median = np.median(shapes, axis=0)[list(order)]
        target = tuple(float(spacing[axis]) for axis in order)
        configurations = self._configurations(target, tuple(float(n) for n in median))
        medians = [np.median(values, axis=0)[list(order)] for values in (facts.spacings_mm, facts.shapes)]
        return ExperimentPlan(
            dataset_name=facts.name,
            plans_name=self.preset.plans_name,
            planner=self.preset.planner,
            transpose=(order[0], order[1], order[2]),
            median_spacing_mm=tuple(float(s) for s in medians[0]),  # type: ignore[arg-type]  # three axes
            median_shape=tuple(round(float(n)) for n in medians[1]),  # type: ignore[arg-type]
            intensity=facts.intensity,
            configurations=configurations,
            decisions=tuple(decisions),
        )

    def _spacing(
        self, given: tuple[float, float, float] | None
    ) -> tuple[tuple[float, float, float], list[Decision]]:
        if given is not None:
            if min(given) <= 0:
                raise ConfigError(
                    f"spacing_mm {given} is not positive", "Give millimetres, depth height width."
                )
            return given, [Decision("spacing_mm", _per_axis(given), "as given")]
        spacing = target_spacing(self.facts.spacings_mm, self.facts.shapes)
        median = tuple(float(s) for s in np.median(self.facts.spacings_mm, axis=0))
        reason = f"median of {self.facts.num_cases} cases"
        if not np.allclose(spacing, median, rtol=1e-9):
            axis = int(np.argmax(np.abs(np.asarray(spacing) - median)))
            reason = (
                f"median of {self.facts.num_cases} cases ({_per_axis(median)}), but along axis {axis} the 10th "
                "percentile: slices there are over 3 times as thick as the other axes and fewer than a third as many, "
                "and the thinner ones keep their detail"
            )
        return spacing, [Decision("spacing_mm", _per_axis(spacing), reason)]

    # ---- which configurations ------------------------------------------------------------------------------

    def _configurations(
        self, spacing: tuple[float, ...], median: tuple[float, ...]
    ) -> dict[str, Configuration]:
        voxels = math.prod(median) * self.facts.num_cases
        flat = self._configuration(_Grid("2d", spacing[1:], median[1:], voxels))
        result = {"2d": replace(flat, batch_dice=True)}
        if median[0] == 1:  # single slices
            return result
        full = self._configuration(_Grid("3d_fullres", spacing, median, voxels))
        low, reason = self._low_resolution(full)
        if low is not None:
            result["3d_lowres"] = replace(low, next_stage="3d_cascade_fullres")
        full = replace(
            full,
            batch_dice=low is not None,
            decisions=(*full.decisions, Decision("3d_lowres", "yes" if low else "no", reason)),
        )
        result["3d_fullres"] = full
        if low is not None:
            result["3d_cascade_fullres"] = replace(
                full, name="3d_cascade_fullres", previous_stage="3d_lowres", decisions=()
            )
        return result

    def _low_resolution(self, full: Configuration) -> tuple[Configuration | None, str]:
        """The configuration whose patch sees enough of a case, if one is needed and worth it; and the reason."""
        median = full.median_shape
        voxels = total = math.prod(median)
        in_patch, spacing, low = math.prod(full.patch_size), np.array(full.spacing_mm), None
        seen = in_patch / voxels
        while in_patch / voxels < LOWRES_BELOW:
            fine = spacing.max() / spacing > 2
            spacing[fine if fine.any() else slice(None)] *= LOWRES_STEP  # first the finer axes, then all
            exact = np.array(full.spacing_mm) / spacing * median
            voxels = float(np.prod(exact))
            low = self._configuration(
                _Grid(
                    "3d_lowres",
                    tuple(float(s) for s in spacing),
                    tuple(round(float(n)) for n in exact),
                    voxels * self.facts.num_cases,
                )
            )
            in_patch = math.prod(low.patch_size)
        share = f"a patch of full resolution covers {min(1.0, seen):.0%} of the median case"
        if low is None:
            return None, f"{share}, at least {LOWRES_BELOW:.0%}"
        if total / voxels < LOWRES_WORTH:
            return (
                None,
                f"{share}, but low resolution would have only {total / voxels:.2f} times fewer voxels",
            )
        return (
            low,
            f"{share}, less than {LOWRES_BELOW:.0%}; at {_per_axis(low.spacing_mm)} mm it covers enough",
        )

    # ---- one configuration ---------------------------------------------------------------------------------

    def _configuration(self, grid: _Grid) -> Configuration:
        axes = len(grid.spacing_mm)
        topology, decisions = self._patch(grid)
        estimate, budget = self._estimate(topology), self._budget(axes)
        batch = round(budget / estimate * REFERENCE_BATCH[axes])
        share = self.preset.dataset_share
        cap = round(grid.voxels_in_dataset * share / math.prod(topology.patch_size))
        batch_size = max(min(batch, cap), MIN_BATCH)
        fits = (
            f"{self.memory_gib:g} GiB hold {budget:.3g} feature-map elements at batch {REFERENCE_BATCH[axes]}, "
            f"a patch needs {estimate:.3g}: {batch} fit"
        )
        if batch > max(cap, MIN_BATCH):
            fits += f"; {max(cap, MIN_BATCH)}, so that a batch covers at most {share:.0%} of the data set"
        elif batch < MIN_BATCH:
            fits += f"; never less than {MIN_BATCH}"
        decisions.append(Decision("batch_size", str(batch_size), fits))
        normalization, masked, why = self._normalization()
        return Configuration(
            name=grid.name,
            spacing_mm=grid.spacing_mm,
            patch_size=topology.patch_size,
            batch_size=batch_size,
            median_shape=grid.median_shape,
            topology=topology,
            network=self.preset.network,
            features=features(topology.num_stages, axes),
            encoder_blocks=self.preset.encoder(topology.num_stages),
            decoder_blocks=self.preset.decoder(topology.num_stages),
            normalization=normalization,
            masked=masked,
            data_identifier=self._data_identifier(grid.name),
            decisions=(*decisions, why),
        )

    def _patch(self, grid: _Grid) -> tuple[Topology, list[Decision]]:
        axes = len(grid.spacing_mm)
        fitted = fit_patch(
            grid.spacing_mm,
            grid.median_shape,
            lambda size: topology_for(grid.spacing_mm, size),
            lambda topology: not self._too_large(topology, axes),
        )
        if fitted is None:
            raise ConfigError(
                f"{self.memory_gib:g} GiB hold no patch of {grid.name} at all",
                f"Give more: --memory-gib (the preset {self.preset.name} has {self.preset.memory_gib:g}).",
            )
        topology = fitted.topology
        strides = _per_axis(topology.divisor)
        return topology, [
            Decision("patch_size", _per_axis(topology.patch_size), fitted.reason(grid.median_shape)),
            Decision(
                "topology",
                f"{topology.num_stages} stages, strides {strides} in all",
                "an axis is halved while it keeps 4 voxels and is within a factor 2 of the finest; kernels span 3 "
                f"voxels along an axis from the stage where it is that: {_kernels(topology)}",
            ),
        ]

    def _too_large(self, topology: Topology, axes: int) -> bool:
        # the plain U-Net's planner reduces the reference to the smallest batch, those of the ResEnc do not
        batch = REFERENCE_BATCH[axes] / MIN_BATCH if self.preset.network == "plain" else 1
        return self._estimate(topology) / batch > self._budget(axes)

    def _estimate(self, topology: Topology) -> int:
        axes = len(topology.patch_size)
        return feature_map_elements(
            UNetShape(
                network=self.preset.network,
                topology=topology,
                features=features(topology.num_stages, axes),
                encoder_blocks=self.preset.encoder(topology.num_stages),
                decoder_blocks=self.preset.decoder(topology.num_stages),
                num_labels=self.facts.num_labels,
            )
        )

    def _budget(self, axes: int) -> float:
        reference = self.preset.reference_2d if axes == 2 else self.preset.reference_3d
        return reference * (self.memory_gib / self.preset.reference_gib)

    def _normalization(self) -> tuple[tuple[str, ...], tuple[bool, ...], Decision]:
        schemes = tuple(
            _SCHEMES.get(name.casefold(), "ZScoreNormalization") for name in self.facts.channel_names
        )
        is_masked = self.facts.relative_size < MASKED_BELOW
        masked = tuple(is_masked and scheme == "ZScoreNormalization" for scheme in schemes)
        reason = f"by channel name ({', '.join(self.facts.channel_names)})"
        if is_masked:
            reason += (
                f"; z-scores over nonzero voxels alone, because cropping to them leaves {self.facts.relative_size:.0%} "
                f"of the volumes, less than {MASKED_BELOW:.0%}"
            )
        return schemes, masked, Decision("normalization", ", ".join(schemes), reason)

    def _data_identifier(self, configuration: str) -> str:
        """ResEnc plans share the plain U-Net's preprocessed data where they agree."""
        shared = self.preset.network == "resenc" and configuration in ("2d", "3d_fullres")
        return f"{'nnUNetPlans' if shared else self.preset.plans_name}_{configuration}"


@dataclass(frozen=True)
class FittedPatch:
    """A patch that fits the memory, and how it was found.

    Attributes:
        topology: of the patch.
        first: the patch that was tried first.
        cuts: how often it was shortened.
    """

    topology: Topology
    first: tuple[int, ...]
    cuts: int

    def reason(self, median_shape: Sequence[float]) -> str:
        """In words."""
        box = "a box of 256³ voxels" if len(self.first) == 3 else "a box of 2048² voxels"
        text = (
            f"{box} in the aspect of 1/spacing, cut to the median case of {_per_axis(median_shape)} and padded to the "
            f"strides: {_per_axis(self.first)}"
        )
        if self.cuts:
            text += (
                f"; shortened {self.cuts} times where it covered most of the median case, to fit the memory"
            )
        return text


def fit_patch(
    spacing_mm: Sequence[float],
    median_shape: Sequence[float],
    topology_of: Callable[[Sequence[float]], Topology],
    fits: Callable[[Topology], bool],
) -> FittedPatch | None:
    """The largest patch in the aspect of the data that fits the memory; None if none does.

    Args:
        spacing_mm: one number an axis.
        median_shape: voxels of the median case.
        topology_of: the topology for a size, with the patch padded to its strides.
        fits: whether a topology fits the memory.
    """
    axes = len(spacing_mm)
    inverse = 1 / np.asarray(spacing_mm)
    box = inverse * (FIRST_BOX[axes] / np.prod(inverse)) ** (1 / axes)
    topology = topology_of([min(round(float(n)), m) for n, m in zip(box, median_shape, strict=True)])
    first, cuts = topology.patch_size, 0
    while not fits(topology):
        patch = list(topology.patch_size)
        axis = max((n / m, axis) for axis, (n, m) in enumerate(zip(patch, median_shape, strict=True)))[1]
        shorter = patch.copy()
        shorter[axis] = max(1, shorter[axis] - topology.divisor[axis])
        # the step is that of the shorter patch, which may be halved less often: no valid size is skipped
        patch[axis] -= topology_of(shorter).divisor[axis]
        if patch[axis] < 1:
            return None
        topology = topology_of(patch)
        cuts += 1
    return FittedPatch(topology, first, cuts)


def _kernels(topology: Topology) -> str:
    names = ["×".join(map(str, kernel)) for kernel in topology.kernels]
    return names[0] if len(set(names)) == 1 else ", ".join(names)
