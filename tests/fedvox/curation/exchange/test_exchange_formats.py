"""Files for other programs, read back by libraries that those programs are built on."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from fedvox.curation.exchange.color_tables import itksnap_labels, slicer_color_table
from fedvox.curation.exchange.colors import structure_colors
from fedvox.curation.exchange.difference import changes, difference_picture
from fedvox.curation.exchange.segmentation_nrrd import read_segmentation, segmentation_bytes
from fedvox.curation.exchange.task import Wanted, case_geometry, export_task, read_task
from fedvox.errors import DataError

STRUCTURES = ("background", "liver", "spleen", "left kidney")


def test_every_structure_has_a_color_of_its_own():
    colors = structure_colors(168)
    assert colors.shape == (168, 3)
    assert not colors[0].any()
    assert len(np.unique(colors[1:], axis=0)) == 167


def test_a_slicer_color_table_is_one_line_a_value_with_names_of_one_word():
    rows = [line.split() for line in slicer_color_table(STRUCTURES).splitlines() if not line.startswith("#")]
    assert [len(row) for row in rows] == [6] * 4
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert rows[3][1] == "left_kidney"
    assert rows[0][5] == "0"  # background is transparent
    assert all(0 <= int(value) <= 255 for row in rows for value in row[2:])


def test_itksnap_label_descriptions_have_eight_fields_and_quoted_names():
    rows = [line for line in itksnap_labels(STRUCTURES).splitlines() if not line.startswith("#")]
    fields = [row.split(None, 7) for row in rows]
    assert [row[0] for row in fields] == ["0", "1", "2", "3"]
    assert [row[7] for row in fields] == ['"Clear Label"', '"liver"', '"spleen"', '"left kidney"']
    assert fields[0][4:7] == ["0", "0", "0"]  # background: transparent, not visible, no mesh
    assert fields[1][4:7] == ["1", "1", "1"]


def test_itk_reads_our_segmentation_where_it_lies_with_its_segments(collection, tmp_path):
    case, mask = collection.store.case("case_1"), collection.organs()
    geometry = case_geometry(case)
    path = tmp_path / "case_1.seg.nrrd"
    path.write_bytes(segmentation_bytes(mask, geometry, STRUCTURES))
    image = SimpleITK.ReadImage(str(path))
    assert np.array_equal(
        SimpleITK.GetArrayFromImage(image), mask
    )  # ITK's array is (z, y, x) of its own grid
    # a voxel's place in ITK's left-posterior-superior millimetres, against the case's own RAS+ affine
    x, y, z = 21, 12, 9
    ras = np.asarray(case.affine) @ [z, y, x, 1]
    assert image.TransformIndexToPhysicalPoint((x, y, z)) == pytest.approx((-ras[0], -ras[1], ras[2]))
    told = {key: image.GetMetaData(key) for key in image.GetMetaDataKeys()}
    assert told["Segment2_Name"] == "left kidney"
    assert told["Segment2_LabelValue"] == "3"


def test_we_read_what_itk_writes_whichever_way_it_lies(tmp_path):
    rng = np.random.default_rng(3)
    mask = rng.integers(0, 4, (5, 6, 7)).astype(np.uint8)
    image = SimpleITK.GetImageFromArray(mask)
    image.SetSpacing((1.5, 2.0, 3.0))
    image.SetOrigin((4.0, 5.0, -6.0))
    image.SetDirection((0, 0, -1, 1, 0, 0, 0, -1, 0))
    path = tmp_path / "turned.nrrd"
    SimpleITK.WriteImage(image, str(path), useCompression=True)
    volume = read_segmentation(path).volume
    oriented = SimpleITK.DICOMOrient(image, "LPS")  # z, y and x of ITK; ours run the other way along x and y
    assert np.array_equal(volume.data[0], SimpleITK.GetArrayFromImage(oriented)[:, ::-1, ::-1])
    assert volume.geometry.spacing_mm == pytest.approx(oriented.GetSpacing()[::-1])


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (lambda data: data[:-40], "truncated"),
        (lambda data: b"PNG" + data, "not_nrrd"),
        (lambda data: data.replace(b"dimension: 3", b"dimension: 4"), "overlapping_segments"),
        (lambda data: data.replace(b"type: unsigned char", b"type: double"), "unsupported_type"),
        (lambda data: data.replace(b"space origin", b"space orange"), "not_nrrd"),
        (lambda data: data.replace(b"sizes: 30 24 18", b"sizes: 30 24 99999999"), "not_nrrd"),
    ],
)
def test_a_damaged_segmentation_is_one_clear_error(collection, tmp_path, damage, code):
    data = segmentation_bytes(collection.organs(), case_geometry(collection.store.case("case_1")), STRUCTURES)
    path = tmp_path / "damaged.seg.nrrd"
    path.write_bytes(damage(data))
    with pytest.raises(DataError) as caught:
        read_segmentation(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_a_task_is_a_monai_label_data_store_whose_files_lie_on_the_image(collection, tmp_path):
    folder = tmp_path / "task"
    task = export_task(collection.store, [Wanted("case_1"), Wanted("case_2", 2)], folder)
    assert read_task(folder) == task
    index = json.loads((folder / "datastore_v2.json").read_text())
    assert set(index) == {"name", "description", "images_dir", "labels_dir", "objects"}
    for case_id, entry in index["objects"].items():
        image = nib.load(folder / index["images_dir"] / f"{case_id}{entry['image']['ext']}")
        assert set(entry["labels"]) == {"original", "consensus"}
        for tag, one in entry["labels"].items():
            labels = nib.load(folder / index["labels_dir"] / tag / f"{case_id}{one['ext']}")
            assert labels.shape == image.shape == (30, 24, 18)
            assert np.array_equal(labels.affine, image.affine)
    first = nib.load(folder / "labels/original/case_1.nii.gz")
    assert np.array_equal(np.asarray(first.dataobj).transpose(2, 1, 0), collection.wrong)
    assert nib.load(folder / "case_1.nii.gz").get_data_dtype() == np.int16
    second = np.asarray(nib.load(folder / "labels/original/case_2.nii.gz").dataobj).transpose(2, 1, 0)
    assert np.array_equal(second, collection.organs())  # version 2, as asked
    assert task.case("case_1").findings[0]["rule"] == "missing"


def test_changes_are_counted_in_voxels_and_in_cubic_millimetres(collection):
    before = collection.wrong
    after = before.copy()
    after[9, 12, 20:24] = 2  # four voxels of liver become spleen
    spacing = (3.0, 2.0, 1.5)
    found = {change.structure: change for change in changes(before, after, STRUCTURES, spacing)}
    assert set(found) == {"liver", "spleen", "left kidney"}
    assert (found["liver"].added_voxels, found["liver"].removed_voxels) == (0, 4)
    assert found["liver"].removed_mm3 == pytest.approx(4 * 9.0)
    assert (found["spleen"].added_voxels, found["spleen"].dice) == (4, 0.0)
    kept = int((before == 1).sum())
    assert found["liver"].dice == pytest.approx(2 * (kept - 4) / (2 * kept - 4))
    assert not found["left kidney"].changed
    assert found["left kidney"].dice == 1.0


def test_the_picture_shows_what_came_and_what_went(collection):
    import io

    from matplotlib import image as images

    before, after = collection.wrong, collection.organs()
    after[after == 3] = 0
    png = difference_picture(np.zeros(before.shape, np.int16), before, after, (3.0, 2.0, 1.5))
    pixels = np.rint(255 * images.imread(io.BytesIO(png))[..., :3])
    for color in ((0, 118, 86), (159, 70, 0)):  # 3/4 of green and of vermillion on black
        assert (np.abs(pixels - color).max(axis=-1) <= 2).any(), color
