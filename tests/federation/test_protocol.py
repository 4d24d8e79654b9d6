"""What goes over the network, there and back, and what is refused on arrival."""

import dataclasses
import io
import math

import numpy as np
import pytest
import torch

from fedvox_federation.dp_sgd.local_round import hash_of
from fedvox_federation.protocol import (
    BadMessage,
    ClinicReply,
    Refusal,
    RoundOrder,
    arrays_sha256,
    decode_order,
    decode_reply,
    encode_order,
    encode_reply,
    split_correction,
    with_correction,
)

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(0.5, np.float32)}
ORDER = RoundOrder("run", 1, 3, "c" * 64, "b" * 64, 0.25)
REPLY = ClinicReply(
    "Nord", "run", 1, arrays=ARRAYS, patients=12, steps=20, noise_multiplier=1.3, sample_rate=0.2, epsilon_spent=2.5,
    delta=1e-3, score=0.7, tier=3, loss=0.4, dice_before=0.6, dice_after=0.65, seconds=1.5, update_sha256="a" * 64,
    attestation="{}", node_key="ssh-ed25519 x", bundle_sha256="d" * 64, replayed=True,
)  # fmt: skip


def test_an_order_arrives_as_it_was_sent():
    order, arrays = decode_order(encode_order(ORDER, ARRAYS))
    assert order == ORDER
    assert all(np.array_equal(arrays[name], value) for name, value in ARRAYS.items())
    assert arrays["b"].shape == ()


def test_a_correction_travels_beside_the_parameters_and_is_told_from_them():
    correction = {name: value + 1 for name, value in ARRAYS.items()}
    _, arrived = decode_order(encode_order(ORDER, with_correction(ARRAYS, correction)))
    arrays, found = split_correction(arrived)
    assert arrays_sha256(arrays) == arrays_sha256(ARRAYS)
    assert arrays_sha256(found) == arrays_sha256(correction)
    assert split_correction(with_correction(ARRAYS, {})) == (ARRAYS, {})


def test_a_reply_arrives_as_it_was_sent():
    found = decode_reply(encode_reply(REPLY))
    assert dataclasses.replace(found, arrays={}) == dataclasses.replace(REPLY, arrays={})
    assert arrays_sha256(found.arrays) == arrays_sha256(ARRAYS)


def test_a_refusal_has_the_same_records_and_keys_as_an_update():
    refusal = ClinicReply("Nord", "run", 1, refusal=Refusal.BUDGET_EXHAUSTED)
    there, here = encode_reply(refusal), encode_reply(REPLY)
    assert set(there) == set(here)
    for key in ("metrics", "clinic"):
        assert set(there[key]) == set(here[key])
    found = decode_reply(there)
    assert found.refusal is Refusal.BUDGET_EXHAUSTED
    assert math.isnan(found.loss)


@pytest.mark.parametrize("record", ["arrays", "metrics", "clinic"])
def test_a_reply_without_a_record_is_refused(record):
    content = encode_reply(REPLY)
    del content[record]
    with pytest.raises(BadMessage, match=record):
        decode_reply(content)


@pytest.mark.parametrize(
    ("record", "key", "value"),
    [
        ("clinic", "refusal", "because"),
        ("clinic", "clinic", 3),
        ("clinic", "replayed", "yes"),
        ("metrics", "steps", 1.5),
        ("metrics", "num-examples", [1]),
    ],
)
def test_a_value_of_another_type_or_an_unknown_code_is_refused(record, key, value):
    content = encode_reply(REPLY)
    content[record][key] = value
    with pytest.raises(BadMessage):
        decode_reply(content)


def test_an_order_for_no_round_of_the_run_is_refused():
    for number in (0, 4):
        with pytest.raises(BadMessage):
            dataclasses.replace(ORDER, round_number=number)


def test_an_array_that_is_a_pickle_is_not_opened():
    content = encode_reply(REPLY)
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    array = content["arrays"]["w"]
    array.data = buffer.getvalue()
    with pytest.raises(BadMessage):
        decode_reply(content)


def npy(header):
    """A file in numpy's format, version 1, of a header alone."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def archive(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        npy("{'descr':'<f4','fortran_order':False,'shape':(1000000000000000,),}"),  # numpy: MemoryError
        npy("{'descr':'<f4','fortran_order':False,'shape':((("),  # tokenize.TokenError
        npy("(" * 5000),
        npy("{'descr':'<f4','fortran_order':False,'shape':(-2,),}"),
        archive(w=np.zeros(2, np.float32)),  # numpy.load gives a file of arrays, which has no shape
        archive(),
        b"PK\x03\x04 and no archive",  # zipfile.BadZipFile
        b"",
    ],
)
def test_bytes_that_make_numpy_stumble_are_refused_like_any_other_bad_message(data):
    content = encode_reply(REPLY)
    content["arrays"]["w"].data = data
    with pytest.raises(BadMessage):
        decode_reply(content)


@pytest.mark.parametrize(
    "key", ["clinic", "run", "update_sha256", "attestation", "node_key", "bundle_sha256"]
)
def test_a_text_without_end_does_not_come_into_the_servers_tables(key):
    content = encode_reply(REPLY)
    content["clinic"][key] = "x" * 10**7
    with pytest.raises(BadMessage, match=key):
        decode_reply(content)


def test_the_hash_of_arrays_is_the_ledgers_hash_of_tensors():
    tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in ARRAYS.items()}
    assert arrays_sha256(ARRAYS) == hash_of(tensors)
