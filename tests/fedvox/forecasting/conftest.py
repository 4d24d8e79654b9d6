"""Small patients on disk, in the layouts that are known."""

import json

import nibabel as nib
import numpy as np
import pytest


def save(path, volume, *, affine=None, seconds=None, unit="sec"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(
        volume.astype(np.float32), np.diag([2.0, 3.0, 4.0, 1.0]) if affine is None else affine
    )
    image.header.set_xyzt_units("mm", unit)
    if seconds is not None:
        image.header["pixdim"][4] = seconds
    nib.save(image, path)
    return path


@pytest.fixture
def save_nifti():
    return save


@pytest.fixture
def patient(tmp_path):
    """Writes a patient with a table; gives its folder. `days` may come in any order."""

    def write(days=(0, 30, 90), name="p01", shape=(8, 10, 12), table="csv", **columns):
        folder = tmp_path / "cohort" / name
        rng = np.random.default_rng(len(name))
        base = rng.random(shape) * 100
        rows = []
        for number, day in enumerate(days):
            save(folder / f"scan{number}.nii.gz", base + day)
            date = str(np.datetime64("2024-01-05") + int(day))
            rows.append({"file": f"scan{number}.nii.gz", "date": date})
        for column, values in columns.items():
            for row, value in zip(rows, values, strict=True):
                row[column] = value
        rows = [{k: v for k, v in row.items() if v is not None} for row in rows]
        if table == "json":
            (folder / "series.json").write_text(json.dumps({"patient": name, "scans": rows}))
        else:
            fields = list(dict.fromkeys(key for row in rows for key in row))
            lines = [",".join(fields), *(",".join(str(row.get(f, "")) for f in fields) for row in rows)]
            (folder / "times.csv").write_text("\n".join(lines) + "\n")
        return folder

    return write


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A model of three steps on simulated hearts, in days; gives its run directory."""
    from fedvox.config import validate
    from fedvox.forecasting.config import ForecastConfig
    from fedvox.forecasting.training import train
    from fedvox.training.world import World

    folder = tmp_path_factory.mktemp("trained")
    config = validate(ForecastConfig, tiny(folder, "model"), source="test")
    train(config, World())
    return folder / "model"


def tiny(folder, name, **changes):
    """A configuration of seconds."""
    return {
        "name": name, "storage": str(folder), "steps": 4, "global_batch_size": 2, "log_every": 1,
        "optimizer": {"lr": 1e-3}, "data": {"simulated": {"kind": "heart", "size": 8}},
        "network": {"widths": [8, 16], "embedding": 8}, "validation": {"every_steps": 2, "examples": 2},
        "checkpoint": {"every_steps": 1}, "compute": {"num_workers": 0, "use_gpu": "no"}, **changes,
    }  # fmt: skip


@pytest.fixture
def tiny_config():
    return tiny
