import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedvox.data import block_codec
from fedvox.data.block_codec import BlockDecoder, address_of, choose_base, encode_block


class TestTheCodec:
    @settings(max_examples=80, deadline=None)
    @given(
        hnp.arrays(st.sampled_from([np.int16, np.uint16]), st.tuples(*[st.integers(1, 9)] * 3)),
        st.sampled_from(["lz4", "zstd"]),
    )
    def test_any_16_bit_block_comes_back(self, block, codec):
        data, base = encode_block(block, codec)
        if not data:
            assert (block == base).all()
            return
        chunk = np.frombuffer(data, np.uint8)
        decoder = BlockDecoder()
        target = decoder.target(block.shape, block.dtype.name)
        decoder.decode(address_of(chunk), chunk.size, target, base)
        np.testing.assert_array_equal(target.voxels, block)

    def test_noise_about_zero_is_moved_off_the_byte_boundary(self):
        noise = np.random.default_rng(0).normal(0, 15, (32, 32, 32)).round().astype(np.int16)
        base = choose_base(noise)
        assert len(set(((noise - base).view(np.uint16) >> 8).ravel().tolist())) == 1
        plain = len(block_codec.compress(noise, "zstd"))
        assert len(encode_block(noise, "zstd")[0]) < 0.93 * plain

    def test_noise_away_from_the_boundary_is_left_alone(self):
        noise = np.random.default_rng(0).normal(-900, 15, (32, 32, 32)).round().astype(np.int16)
        assert choose_base(noise) == 0

    def test_size_is_near_the_entropy_of_the_noise(self):
        noise = np.random.default_rng(0).normal(40, 15, (32, 32, 32)).round().astype(np.int16)
        entropy_bits = 0.5 * np.log2(2 * np.pi * np.e * 15**2)  # of a Gaussian in steps of 1
        bits = 8 * len(encode_block(noise, "zstd")[0]) / noise.size
        assert entropy_bits - 0.05 < bits < entropy_bits + 0.25

    @pytest.mark.parametrize("fast", [True, False])
    def test_both_decoders_agree_and_refuse_damage(self, fast, monkeypatch):
        if not fast:
            monkeypatch.setattr(block_codec, "_library", lambda: None)
        elif block_codec._library() is None:
            pytest.skip("this build of blosc2 carries no C library")
        block = np.random.default_rng(0).integers(0, 500, (8, 9, 10)).astype(np.int16)
        chunk = np.frombuffer(encode_block(block, "zstd")[0], np.uint8)
        base = encode_block(block, "zstd")[1]
        decoder = BlockDecoder()
        target = decoder.target((8, 9, 10), "int16")
        decoder.decode(address_of(chunk), chunk.size, target, base)
        np.testing.assert_array_equal(target.voxels, block)
        for shape in [(8, 9, 9), (8, 9, 11)]:
            with pytest.raises(ValueError, match="not a chunk"):
                decoder.decode(address_of(chunk), chunk.size, decoder.target(shape, "int16"), base)
        with pytest.raises(ValueError, match="not a chunk"):
            decoder.decode(address_of(chunk), 3, target, base)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 11), st.integers(1, 12)), min_size=2, max_size=6)
    )
    def test_a_part_of_the_depth_comes_back_whatever_was_decoded_before(self, reads):
        """Quiet, incompressible, odd, many-channelled, constant and damaged blocks, by one decoder in any order."""
        rng = np.random.default_rng(0)
        incompressible = rng.integers(-30000, 30000, (12, 32, 32)).astype(np.int16)
        blocks = [
            rng.integers(0, 500, (12, 32, 32)).astype(np.int16), incompressible, incompressible[:11],
            rng.integers(0, 500, (3, 12, 8, 9)).astype(np.int16), np.full((12, 8, 8), 7, np.int16), incompressible,
        ]  # fmt: skip
        damaged = len(blocks) - 1
        decoder = BlockDecoder()
        for which, first, length in reads:
            block = blocks[which]
            chunk = np.frombuffer(block_codec.compress(block, "zstd"), np.uint8)
            first = min(first, block.shape[-3] - 1)
            depth = slice(first, min(first + length, block.shape[-3]))
            target = decoder.target(block.shape, "int16", depth)
            if which == damaged:
                with pytest.raises(ValueError, match="not a chunk"):
                    decoder.decode(address_of(chunk), chunk.size - 1, target, 0)
                continue
            target.voxels[...] = -1
            decoder.decode(address_of(chunk), chunk.size, target, 0)
            np.testing.assert_array_equal(target.voxels[..., depth, :, :], block[..., depth, :, :])

    def test_the_half_that_nobody_asked_for_is_not_decoded(self):
        block = np.random.default_rng(0).integers(1, 500, (2, 32, 32, 32)).astype(np.int16)
        chunk = np.frombuffer(block_codec.compress(block, "zstd"), np.uint8)
        decoder = BlockDecoder()
        target = decoder.target(block.shape, "int16", slice(20, 30))
        target.voxels[...] = -1
        decoder.decode(address_of(chunk), chunk.size, target, 0)
        assert (target.voxels[:, :16] == -1).all()
        np.testing.assert_array_equal(target.voxels[:, 16:], block[:, 16:])

    def test_places_of_all_shapes_share_one_buffer(self):
        decoder = BlockDecoder()
        largest = decoder.target((2, 32, 32, 32), "float32")
        smaller = decoder.target((7, 5, 3), "uint8")
        assert smaller.address == largest.address
        assert np.shares_memory(smaller.voxels, largest.voxels)

    def test_the_wheel_of_the_tested_set_decodes_by_the_fast_way(self):
        assert block_codec._library() is not None
