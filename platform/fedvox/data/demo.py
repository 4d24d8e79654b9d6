"""The embedded data set: the MNI152 brain, as a handful of scanners at three sites might have seen it.

nilearn's wheel carries the ICBM152 2009a T1 template (1 mm, skull-stripped) with its gray and white matter
probability maps: a real averaged brain, with no download. From it this module writes an nnU-Net raw folder:

    Dataset001_MNI152Sites/
        imagesTr/site_a_01_0000.nii.gz, ...     labelsTr/site_a_01.nii.gz, ...
        dataset.json        labels: gray matter 1, white matter 2
        sources.json        case -> site
        splits_final.json   the unaltered 1 mm brain, mni152_original, is held out for validation
        parameters/ID.json  everything that was done to a case
        demo.json           options, provenance and the template's copyright notice

Each case is a differently shaped head (a smooth random deformation and a small rotation and scaling, applied to the
image and to the tissue maps alike), seen by its site's scanner:

    site_a   uneven coil: strong bias field, Rician noise
    site_b   another sequence: gamma and contrast changed, Gaussian noise; stored LPS
    site_c   thick slices: two to three times the in-plane voxel size along z, weak bias, Rician noise

The same options give the same bytes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import secrets
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from fedvox.data.nifti import read_nifti
from fedvox.data.simulated_scanner import Acquisition, Head, acquire, with_spacing
from fedvox.errors import ConfigError
from fedvox.storage import sync_folder

DATASET = "Dataset001_MNI152Sites"
ORIGINAL = "mni152_original"
SITES = ("site_a", "site_b", "site_c")
LABELS = {"background": 0, "gray matter": 1, "white matter": 2}
_FILES = {name: f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz" for name in ("t1", "gm", "wm")}
NOTICE = (
    "ICBM 152 nonlinear symmetric 2009a. Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, "
    "Montreal Neurological Institute, McGill University. Permission to use, copy, modify, and distribute this "
    "software and its documentation for any purpose and without fee is hereby granted, provided that the above "
    "copyright notice appear in all copies. The authors and McGill University make no representations about the "
    "suitability of this software for any purpose. It is provided 'as is' without express or implied warranty. "
    "Fonov et al. 2011, NeuroImage 54:313-327."
)

Array = np.ndarray


@dataclass(frozen=True)
class DemoOptions:
    """What the demo consists of.

    Args:
        cases: simulated acquisitions, spread over the three sites; the original comes on top.
        resolution_mm: in-plane voxel size, 1 (the template's own) to 4; 2 suits a CPU.
        seed: of everything random.
    """

    cases: int = 9
    resolution_mm: float = 2.0
    seed: int = 0


def write_demo(folder: Path | str, options: DemoOptions | None = None) -> Path:
    """Writes the demo data set, all of it or nothing; an existing one with the same options is left alone.

    Args:
        folder: where `Dataset001_MNI152Sites` goes.
        options: what it consists of.

    Returns:
        The data set's folder.

    Raises:
        ConfigError: nilearn is missing, the options make no sense, or another data set is there.
    """
    options = options or DemoOptions()
    _check(options)
    target = Path(folder) / DATASET
    described = _described(options)
    if (target / "demo.json").is_file():
        found = json.loads((target / "demo.json").read_text(encoding="utf-8"))
        if found["options"] == described["options"]:
            return target
    if target.exists():
        raise ConfigError(
            f"{target} exists and is no demo data set with these options",
            "Delete it, or name another folder.",
        )
    draft = target.with_name(f".{DATASET}.{secrets.token_hex(4)}.tmp")
    try:
        _write(draft, options, described)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    sync_folder(target.parent)
    return target


def _check(options: DemoOptions) -> None:
    resolution = options.resolution_mm
    if options.cases < 1 or not 1 <= resolution <= 4 or not (4 * resolution).is_integer():
        raise ConfigError(
            f"demo: cases is {options.cases} and resolution_mm {resolution:g}",
            "Give at least one case, and 1 to 4 mm in quarters.",
        )


def _write(draft: Path, options: DemoOptions, described: dict[str, Any]) -> None:
    for name in ("imagesTr", "labelsTr", "parameters"):
        (draft / name).mkdir(parents=True)
    original = load_brain()
    _write_case(draft, ORIGINAL, original, original.t1 * 255, "RAS")
    brain = with_spacing(original, (options.resolution_mm,) * 3)
    sources = {ORIGINAL: "mni152"}
    for acquisition in plan_acquisitions(options):
        head, image = acquire(brain, acquisition)
        _write_case(draft, acquisition.case_id, head, image, acquisition.orientation)
        _write_json(draft / "parameters" / f"{acquisition.case_id}.json", asdict(acquisition))
        sources[acquisition.case_id] = acquisition.site
    training = [case for case in sources if case != ORIGINAL]
    _write_json(draft / "sources.json", sources)
    _write_json(draft / "splits_final.json", [{"train": training, "val": [ORIGINAL]}])
    _write_json(
        draft / "dataset.json",
        {
            "channel_names": {"0": "T1"},
            "labels": LABELS,
            "numTraining": len(sources),
            "file_ending": ".nii.gz",
            "name": DATASET.split("_", 1)[1],
            "description": "Simulated acquisitions of the MNI152 brain with gray and white matter",
            "licence": NOTICE,
        },
    )
    _write_json(draft / "demo.json", described)


def _described(options: DemoOptions) -> dict[str, Any]:
    hashes = {
        name: hashlib.sha256((_template_folder() / file).read_bytes()).hexdigest()
        for name, file in _FILES.items()
    }
    return {"options": asdict(options), "template_sha256": hashes, "notice": NOTICE}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_case(draft: Path, case_id: str, head: Head, image: Array, orientation: str) -> None:
    affine = np.diag([*head.spacing_mm[::-1], 1.0])
    affine[:3, 3] = head.origin_mm
    whole = np.clip(np.rint(image), 0, np.iinfo(np.int16).max).astype(np.int16)
    for array, path in (
        (whole, draft / "imagesTr" / f"{case_id}_0000.nii.gz"),
        (head.label(), draft / "labelsTr" / f"{case_id}.nii.gz"),
    ):
        volume = nib.Nifti1Image(array.transpose(2, 1, 0), affine)
        volume.header.set_xyzt_units("mm")
        turn = nib.orientations.axcodes2ornt(orientation)
        nib.save(volume.as_reoriented(nib.orientations.ornt_transform(_RAS, turn)), path)


_RAS = nib.orientations.axcodes2ornt("RAS")


# ---- the brain ---------------------------------------------------------------------------------------------


def load_brain() -> Head:
    """The MNI152 T1 brain with its gray and white matter maps, 1 mm, from the installed nilearn.

    Raises:
        ConfigError: nilearn is not installed.
    """
    volumes = [read_nifti(str(_template_folder() / file)) for file in _FILES.values()]
    t1, gray, white = (volume.data[0].astype(np.float32) / 255 for volume in volumes)
    x, y, z = (row[3] for row in volumes[0].geometry.affine[:3])
    return Head(t1, gray, white, (1.0, 1.0, 1.0), (x, y, z))


def _template_folder() -> Path:
    found = importlib.util.find_spec("nilearn")  # not imported: that takes seconds
    if found is None or found.origin is None:
        raise ConfigError(
            "the demo takes its brain from nilearn, which is not installed", "pip install 'fedvox[demo]'."
        )
    return Path(found.origin).parent / "datasets" / "data"


def plan_acquisitions(options: DemoOptions) -> list[Acquisition]:
    """The parameters of every simulated case, drawn from the seed."""
    return [_plan(options, number) for number in range(options.cases)]


def _plan(options: DemoOptions, number: int) -> Acquisition:
    site = SITES[number % len(SITES)]
    rng = np.random.Generator(np.random.Philox(key=[options.seed, number]))

    def between(low: float, high: float) -> float:
        return round(float(rng.uniform(low, high)), 4)

    rotation = between(-8, 8), between(-8, 8), between(-8, 8)
    scale = between(0.93, 1.07), between(0.93, 1.07), between(0.93, 1.07)
    is_a, is_b, is_c = (site == one for one in SITES)
    thick = max(3.0, 2 * options.resolution_mm)
    return Acquisition(
        case_id=f"{site}_{number // len(SITES) + 1:02d}",
        site=site,
        rotation_degrees=rotation,
        scale=scale,
        deformation_mm=between(2.0, 3.5),
        bias=between(0.25, 0.45) if is_a else between(0.05, 0.15),
        gamma=between(0.75, 1.4) if is_b else 1.0,
        contrast=between(0.7, 1.2) if is_b else 1.0,
        noise=between(0.03, 0.06) if is_a else between(0.015, 0.035),
        noise_kind="gaussian" if is_b else "rician",
        slice_mm=thick if is_c else options.resolution_mm,
        gain=between(300, 1500),
        orientation="LPS" if is_b else "RAS",
        key=(options.seed, number),
    )
