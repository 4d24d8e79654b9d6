"""More sites that scan the demo's brain, apart from those that the demo trains on: a target for fine-tuning.

    site_d   a T2-like sequence: the contrast between gray and white matter is reversed
    site_e   low field: three times the demo's noise
    site_f   slices of 5 mm, an uneven coil beyond the demo's, and a steep gamma
    site_g   a T1 protocol with an exaggerated contrast and a flat gamma, noisier than the demo's

Noise, coil, contrast, gamma or slices: what is named here lies outside of the demo's ranges (see `fedvox.data.demo`),
and no head is one of the demo's, for each is deformed by other random numbers. What both share is the one anatomy that
all of them are deformed from, and the two structures, gray and white matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedvox.data.demo import LABELS, load_brain
from fedvox.data.records import StoreMeta
from fedvox.data.simulated_scanner import Acquisition, acquire, with_spacing
from fedvox.data.store import BrickStore
from fedvox.data.store_writer import StoreWriter

NEW_SCANNERS = (
    "site_e",
    "site_f",
    "site_g",
)  # the sequence that the demo knows, on scanners that it does not
NEW_SITES = ("site_d", *NEW_SCANNERS)
_KEY = 1_000_003  # apart from the demo's seeds, which begin at 0


@dataclass(frozen=True)
class _Range:
    """From where a parameter is drawn."""

    low: float
    high: float


_SCANNERS: dict[str, dict[str, _Range]] = {
    "site_d": {"contrast": _Range(-1.0, -0.7), "noise": _Range(0.07, 0.09), "bias": _Range(0.16, 0.24)},
    "site_e": {"contrast": _Range(0.5, 0.65), "noise": _Range(0.10, 0.14), "bias": _Range(0.16, 0.24)},
    "site_f": {"gamma": _Range(1.6, 2.0), "noise": _Range(0.07, 0.09), "bias": _Range(0.5, 0.7),
               "slice_mm": _Range(5.0, 5.0)},
    "site_g": {"contrast": _Range(1.35, 1.6), "gamma": _Range(0.5, 0.65), "noise": _Range(0.07, 0.09),
               "bias": _Range(0.16, 0.24)},
}  # fmt: skip


def write_new_sites(
    store: str,
    sites: Sequence[str] = NEW_SITES,
    *,
    cases_per_site: int = 3,
    resolution_mm: float = 3.0,
    seed: int = 0,
) -> BrickStore:
    """Simulates the new sites' acquisitions into a brick store; a finished one is left as it is.

    Args:
        store: folder or `s3://` address.
        sites: of `NEW_SITES`.
        cases_per_site: heads that each site scans; cases are called `site_d_01` and so on.
        resolution_mm: in-plane voxel size; the demo's is 2.
        seed: of everything random.

    Raises:
        ConfigError: the brain is not installed (see `fedvox.data.demo.load_brain`).
    """
    meta = StoreMeta(
        name="MNI152NewSites",
        channel_names=("T1",),
        modality="MR",
        structures=tuple(LABELS),
        label_sets={"all": tuple(LABELS.values())},
        normalization="zscore",
    )
    writer = StoreWriter.create(store, meta)
    brain = with_spacing(load_brain(), (resolution_mm,) * 3)
    for acquisition in plan_new_sites(cases_per_site, resolution_mm, seed, sites):
        if writer.finished(acquisition.case_id, origin=repr(acquisition)) is not None:
            continue
        head, image = acquire(brain, acquisition)
        writer.add_case(
            acquisition.case_id,
            np.clip(np.rint(image), 0, np.iinfo(np.int16).max).astype(np.int16)[None],
            head.label(),
            source=acquisition.site,
            label_set="all",
            spacing_mm=head.spacing_mm,
            origin=repr(acquisition),
        )
    writer.finish()
    return BrickStore.open(store)


def plan_new_sites(
    cases_per_site: int, resolution_mm: float, seed: int, sites: Sequence[str] = NEW_SITES
) -> list[Acquisition]:
    """The parameters of every case, drawn from the seed; a case is the same whichever other sites are there."""
    return [
        _plan(site, number, resolution_mm, (_KEY + seed, number * len(NEW_SITES) + NEW_SITES.index(site)))
        for number in range(cases_per_site)
        for site in sites
    ]


def _plan(site: str, number: int, resolution_mm: float, key: tuple[int, int]) -> Acquisition:
    rng = np.random.Generator(np.random.Philox(key=list(key)))

    def between(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 4)

    rotation = between(-8, 8), between(-8, 8), between(-8, 8)
    scale = between(0.93, 1.07), between(0.93, 1.07), between(0.93, 1.07)
    drawn = {name: between(span.low, span.high) for name, span in _SCANNERS[site].items()}
    return Acquisition(
        case_id=f"{site}_{number + 1:02d}",
        site=site,
        rotation_degrees=rotation,
        scale=scale,
        deformation_mm=between(2.0, 3.5),
        noise_kind="rician",
        gain=between(300, 1500),
        orientation="RAS",
        key=key,
        **{"gamma": 1.0, "contrast": 1.0, "slice_mm": resolution_mm, **drawn},
    )
