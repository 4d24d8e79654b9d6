import errno
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading

import blosc2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedvox.data.bricks import CaseHeader, CaseReader, write_case
from fedvox.data.ranges import MappedFile
from fedvox.errors import DamagedCase, DataError, StorageError
from fedvox.storage import locate

HEADER = CaseHeader("case_1", (1.5, 0.8, 0.8))


def ct(shape, seed=0):
    """Air, water and bone with noise: values about 0 HU flip the sign."""
    rng = np.random.default_rng(seed)
    z, y, x = np.indices(shape)
    inside = ((y - shape[1] / 2) ** 2 + (x - shape[2] / 2) ** 2) < (min(shape[1:]) / 2.5) ** 2
    image = np.where(inside, 10 + 0.2 * z, -1000.0) + rng.normal(0, 15, shape)
    label = np.where(inside & (z > 5), 1, 0).astype(np.uint8)
    label[: shape[0] // 4, : shape[1] // 4, : shape[2] // 4] = 2
    return np.round(image).astype(np.int16)[None], label


@pytest.fixture
def written(tmp_path):
    """Writes a case and opens it."""

    def write(image, label=None, **options):
        path = tmp_path / "case.arrow"
        write_case(path, image, label, header=options.pop("header", HEADER), **options)
        return CaseReader.open(locate(path))

    return write


def expected_patch(volume, start, size, fill):
    """A patch the slow and obvious way: pad on all sides, then cut."""
    reach = [max(0, -s) + max(0, s + n - e) + n for s, n, e in zip(start, size, volume.shape, strict=True)]
    padded = np.pad(volume, [(r, r) for r in reach], constant_values=fill)
    return padded[tuple(slice(s + r, s + r + n) for s, n, r in zip(start, size, reach, strict=True))]


class TestReadingPatches:
    @pytest.mark.parametrize("codec", ["lz4", "zstd"])
    @pytest.mark.parametrize("shape", [(70, 130, 65), (64, 64, 64), (1, 1, 1), (33, 31, 200), (5, 64, 3)])
    def test_the_whole_volume_comes_back(self, written, shape, codec):
        image, label = ct(shape)
        read_image, read_label = written(image, label, codec=codec).read_all()
        np.testing.assert_array_equal(read_image, image)
        np.testing.assert_array_equal(read_label, label)
        assert read_image.dtype == np.int16
        assert read_label.dtype == np.uint8

    @settings(max_examples=60, deadline=None)
    @given(
        start=st.tuples(*[st.integers(-90, 150)] * 3),
        size=st.tuples(*[st.integers(1, 100)] * 3),
        threads=st.sampled_from([1, 3]),
    )
    def test_any_box_equals_padding_and_cutting(self, tmp_path_factory, start, size, threads):
        image, label = ct((45, 100, 70))
        path = tmp_path_factory.getbasetemp() / "any_box.arrow"
        if not path.exists():
            write_case(path, image, label, header=HEADER)
        read_image, read_label = CaseReader.open(locate(path)).read_patch(start, size, threads=threads)
        np.testing.assert_array_equal(read_image[0], expected_patch(image[0], start, size, image.min()))
        np.testing.assert_array_equal(read_label, expected_patch(label, start, size, 0))

    @pytest.mark.parametrize(
        "dtype",
        ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "float16", "float32", "float64"],
    )
    def test_every_dtype_and_its_extremes(self, written, dtype):
        rng = np.random.default_rng(3)
        if np.dtype(dtype).kind == "f":
            image = rng.normal(0, 100, (2, 40, 33, 35)).astype(dtype)
            extremes = [np.finfo(dtype).min, np.finfo(dtype).max]
        else:
            extremes = [np.iinfo(dtype).min, np.iinfo(dtype).max]
            image = rng.integers(*extremes, (2, 40, 33, 35), dtype=dtype, endpoint=True)
        image[0, :2, :2, :2], image[1, -2:, -2:, -2:] = extremes
        read, label = written(image).read_all()
        np.testing.assert_array_equal(read, image)
        assert read.dtype == image.dtype
        assert label is None

    def test_channels_are_padded_with_their_own_minimum(self, written):
        image = np.stack(
            [np.full((20, 20, 20), -5, np.int16), np.arange(8000, dtype=np.int16).reshape(20, 20, 20)]
        )
        image[0, 3, 3, 3] = 100
        reader = written(image)
        patch, _ = reader.read_patch((-4, 0, 0), (8, 8, 8))
        assert (patch[0, :4] == -5).all()
        assert (patch[1, :4] == 0).all()
        np.testing.assert_array_equal(patch[:, 4:], image[:, :4, :8, :8])
        patch, _ = reader.read_patch((-4, 0, 0), (8, 8, 8), pad_value=7)
        assert (patch[:, :4] == 7).all()
        patch, _ = reader.read_patch((-4, 0, 0), (8, 8, 8), pad_value=(1, 2))
        assert (patch[0, :4] == 1).all()
        assert (patch[1, :4] == 2).all()

    def test_a_box_beside_the_volume_is_padding_only(self, written):
        image, label = ct((40, 40, 40))
        patch, labels = written(image, label).read_patch((100, -50, 0), (10, 10, 10))
        assert (patch == image.min()).all()
        assert (labels == 0).all()

    def test_nan_and_infinity_survive_and_do_not_become_the_padding(self, written):
        image = np.ones((1, 10, 10, 10), np.float32)
        image[0, 0, 0, :3] = np.nan, np.inf, 0.5
        reader = written(image)
        np.testing.assert_array_equal(reader.read_all()[0], image)
        assert reader.read_patch((-1, 0, 0), (1, 2, 2))[0].max() == 0.5

    def test_memory_order_and_byte_order_do_not_matter(self, written):
        image, _ = ct((40, 50, 33))
        np.testing.assert_array_equal(written(np.asfortranarray(image)).read_all()[0], image)
        np.testing.assert_array_equal(written(image.astype(">i2")).read_all()[0], image)
        np.testing.assert_array_equal(written(image[:, ::-1, :, ::2]).read_all()[0], image[:, ::-1, :, ::2])

    def test_labels_of_more_than_256_structures(self, written):
        image, label = ct((40, 40, 40))
        label = label.astype(np.uint16) * 300
        _, read = written(image, label).read_all()
        np.testing.assert_array_equal(read, label)
        assert read.dtype == np.uint16

    def test_results_belong_to_the_caller(self, written):
        image, label = ct((64, 64, 64))
        reader = written(image, label)
        first, _ = reader.read_patch((0, 0, 0), (32, 32, 32))
        kept = first.copy()
        first_again, _ = reader.read_patch((32, 32, 32), (32, 32, 32))
        first_again[...] = 0
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(reader.read_all()[0], image)

    def test_many_threads_read_one_reader(self, written):
        image, label = ct((100, 100, 100))
        reader = written(image, label)
        wrong = []

        def work(seed):
            rng = np.random.default_rng(seed)
            for _ in range(15):
                start = rng.integers(-20, 80, 3)
                patch, labels = reader.read_patch(start.tolist(), (48, 40, 56))
                same = np.array_equal(patch[0], expected_patch(image[0], start, (48, 40, 56), image.min()))
                if not same or not np.array_equal(labels, expected_patch(label, start, (48, 40, 56), 0)):
                    wrong.append(start)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        [one.start() for one in threads]
        [one.join() for one in threads]
        assert not wrong


class TestTheFileIsPlainArrow:
    def test_pyarrow_alone_reads_it_and_blosc2_alone_decodes_it(self, written, tmp_path):
        image, label = ct((70, 130, 65))
        written(image, label, codec="zstd")
        file = pa.ipc.open_file(pa.memory_map(str(tmp_path / "case.arrow")))
        assert file.schema.names == ["image", "label"]
        layout = json.loads(file.schema.metadata[b"fedvox.layout"])
        blocks = pa.ipc.open_stream(file.metadata[b"fedvox.blocks"]).read_all().to_pydict()
        assert file.num_record_batches == 2 * 3 * 2  # bricks of 64 voxels
        raw = (tmp_path / "case.arrow").read_bytes()
        payloads = {
            n: b"".join(file.get_batch(k).column(n)[0].as_py() for k in range(12)) for n in ("image", "label")
        }
        side, grid = layout["block"], [-(-n // layout["block"]) for n in layout["shape"]]
        for name, volume in (("image", image), ("label", label[None])):
            out = np.zeros_like(volume)
            taken = 0
            for row, block in enumerate(itertools.product(*map(range, grid))):
                box = tuple(
                    slice(b * side, min((b + 1) * side, n))
                    for b, n in zip(block, layout["shape"], strict=True)
                )
                offset, size = blocks[f"{name}_offset"][row], blocks[f"{name}_size"][row]
                if size:
                    chunk = raw[offset : offset + size]
                    assert chunk in payloads[name]
                    voxels = np.frombuffer(blosc2.decompress2(chunk), volume.dtype)
                    out[(slice(None), *box)] = voxels.reshape(out[(slice(None), *box)].shape)
                    taken += size
                out[(slice(None), *box)] += np.array(blocks[f"{name}_base"][row], volume.dtype)
            np.testing.assert_array_equal(out, volume)
            assert taken == len(payloads[name])  # the columns hold the blocks and nothing else

    def test_the_header_tells_what_the_case_is(self, written):
        header = CaseHeader("x", (2.0, 1.0, 0.5), ("ct",), ((1.0, 0.0, 0.0, 5.0),) * 4, "a.nii.gz")
        reader = written(ct((40, 40, 40))[0], header=header)
        assert reader.header == header
        assert (reader.shape, reader.channels) == ((40, 40, 40), 1)

    def test_info_is_of_the_file(self, tmp_path):
        image, _ = ct((40, 40, 40))
        info = write_case(tmp_path / "a.arrow", image, None, header=HEADER)
        data = (tmp_path / "a.arrow").read_bytes()
        assert info.num_bytes == len(data)
        assert info.sha256 == hashlib.sha256(data).hexdigest()

    def test_the_same_case_makes_the_same_bytes_with_any_number_of_threads(self, tmp_path):
        image, label = ct((100, 90, 80))
        infos = [write_case(tmp_path / f"{n}", image, label, header=HEADER, threads=n) for n in (1, 4)]
        assert infos[0].sha256 == infos[1].sha256

    def test_equal_voxels_take_no_bytes(self, tmp_path):
        info = write_case(
            tmp_path / "a",
            np.full((1, 256, 256, 256), -1024, np.int16),
            np.zeros((256,) * 3, np.uint8),
            header=HEADER,
        )
        assert (
            info.num_bytes < 64 * 512 + 20_000
        )  # Arrow's own message of each of the 64 bricks, and the index
        image, label = CaseReader.open(locate(tmp_path / "a")).read_patch((-1, 0, 0), (40, 40, 40))
        assert (image == -1024).all()
        assert (label == 0).all()

    def test_one_read_of_the_tail_opens_it(self, tmp_path):
        image, label = ct((100, 100, 100))
        write_case(tmp_path / "a", image, label, header=HEADER)
        asked = []

        class Watching(MappedFile):
            def read(self, ranges):
                asked.append(list(ranges))
                return super().read(ranges)

        CaseReader.open(locate(tmp_path / "a"), source=Watching(tmp_path / "a"))
        assert len(asked) == 1
        assert len(asked[0]) == 1
        assert asked[0][0].end == (tmp_path / "a").stat().st_size

    def test_an_index_longer_than_the_first_read_is_read_by_a_second(self, tmp_path, monkeypatch):
        image, label = ct((100, 100, 100))
        write_case(tmp_path / "a", image, label, header=HEADER)
        monkeypatch.setattr("fedvox.data.case_reader.TAIL_BYTES", 500)
        np.testing.assert_array_equal(CaseReader.open(locate(tmp_path / "a")).read_all()[0], image)


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path):
        image, label = ct((70, 70, 70))
        write_case(tmp_path / "case.arrow", image, label, header=HEADER)
        return tmp_path / "case.arrow"

    def test_a_flipped_bit_names_the_file_and_the_brick(self, path):
        table = CaseReader.open(locate(path))._index.tables["image"]
        data = bytearray(path.read_bytes())
        data[int(table.offset[1, 2, 0]) + 100] ^= 4
        path.write_bytes(data)
        reader = CaseReader.open(locate(path))
        with pytest.raises(
            DamagedCase, match=r"case\.arrow: brick \(0, 1, 0\) of case 'case_1': the image"
        ) as caught:
            reader.read_all()
        assert caught.value.remedy
        reader.read_patch((0, 0, 32), (32, 32, 32))  # other bricks are fine

    def test_any_flipped_byte_is_found_or_changes_nothing(self, path):
        image, label = ct((70, 70, 70))
        data = path.read_bytes()
        rng = np.random.default_rng(0)
        found = 0
        for position in rng.integers(0, len(data), 150).tolist():
            damaged = bytearray(data)
            damaged[position] ^= int(rng.integers(1, 256))
            path.write_bytes(damaged)
            try:
                read = CaseReader.open(locate(path)).read_all()
            except DamagedCase:
                found += 1
            else:
                np.testing.assert_array_equal(read[0], image)
                np.testing.assert_array_equal(read[1], label)
        assert found > 120

    @pytest.mark.parametrize("kept", [0, 1, 9, 100, 0.5, 0.9, -1, -10, -2000])
    def test_a_truncated_file_is_named(self, path, kept):
        data = path.read_bytes()
        path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
        with pytest.raises(DamagedCase, match=r"case\.arrow"):
            CaseReader.open(locate(path))

    def test_another_kind_of_file_is_named(self, tmp_path):
        (tmp_path / "x.arrow").write_bytes(b"PK\3\4" * 1000)
        with pytest.raises(DamagedCase, match=r"x\.arrow.*not a case file"):
            CaseReader.open(locate(tmp_path / "x.arrow"))

    def test_another_arrow_file_is_named(self, tmp_path):
        table = pa.table({"a": [1, 2]})
        with pa.ipc.new_file(str(tmp_path / "x.arrow"), table.schema) as writer:
            writer.write_table(table)
        with pytest.raises(DamagedCase, match=r"x\.arrow.*index"):
            CaseReader.open(locate(tmp_path / "x.arrow"))

    def test_a_missing_file_is_a_storage_error(self, tmp_path):
        with pytest.raises(StorageError, match=r"nothing\.arrow: does not exist"):
            CaseReader.open(locate(tmp_path / "nothing.arrow"))


class TestWriting:
    @pytest.mark.parametrize(
        ("image", "label", "said"),
        [
            (np.zeros((4, 4, 4), np.int16), None, r"\(C, D, H, W\)"),
            (np.zeros((1, 0, 4, 4), np.int16), None, r"\(1, 0, 4, 4\)"),
            (np.zeros((1, 4, 4, 4), complex), None, "complex"),
            (np.zeros((1, 4, 4, 4), bool), None, "bool"),
            (np.zeros((1, 4, 4, 4), np.int16), np.zeros((4, 4, 5), np.uint8), "label's shape"),
            (np.zeros((1, 4, 4, 4), np.int16), np.zeros((4, 4, 4), np.int64), "label's dtype"),
        ],
    )
    def test_what_does_not_fit_is_refused_by_name(self, tmp_path, image, label, said):
        with pytest.raises(DataError, match=said) as caught:
            write_case(tmp_path / "a", image, label, header=HEADER)
        assert "case_1" in caught.value.message + caught.value.remedy
        assert list(tmp_path.iterdir()) == []

    def test_channel_names_and_codec_are_checked(self, tmp_path):
        image = np.zeros((2, 4, 4, 4), np.int16)
        with pytest.raises(DataError, match="1 channel names for 2 channels"):
            write_case(tmp_path / "a", image, None, header=CaseHeader("x", (1, 1, 1), ("ct",)))
        with pytest.raises(DataError, match="unknown codec 'gzip'"):
            write_case(tmp_path / "a", image, None, header=HEADER, codec="gzip")

    def test_a_full_disk_leaves_the_old_file_and_nothing_else(self, tmp_path, monkeypatch):
        image, label = ct((40, 40, 40))
        path = tmp_path / "a"
        write_case(path, image, label, header=HEADER)
        before = path.read_bytes()

        def full(_):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="no space left"):
            write_case(path, image + 1, label, header=HEADER)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


def test_reading_needs_neither_torch_nor_ray():
    code = "import sys, fedvox.data.store; print(sorted({'torch', 'ray', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
