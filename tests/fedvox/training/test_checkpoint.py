import json
import logging
import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedvox import storage
from fedvox.errors import CheckpointError, StorageError
from fedvox.storage import locate
from fedvox.training.checkpoint import (
    COMMIT,
    CheckpointStore,
    Snapshot,
    Writer,
    assign_shards,
    committed_steps,
    load_latest,
    newest_meta,
    step_name,
)
from fedvox.training.state import restore, state_tensors


def snapshot(step, value=0.0):
    tensors = {f"t{i}": torch.full((i + 1, 3), value + i) for i in range(7)}
    return Snapshot(step, tensors, {"progress": {"step": step}})


def store(tmp_path, rank=0, world=1, attempt=0, **options):
    return CheckpointStore(locate(tmp_path), Writer(rank, world, attempt), **options)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@given(st.dictionaries(st.text(min_size=1), st.integers(1, 1000), max_size=30), st.integers(1, 6))
def test_every_tensor_is_in_exactly_one_shard_and_shards_are_balanced(sizes, world):
    shards = assign_shards(sizes, world)
    assert sorted(name for shard in shards for name in shard) == sorted(sizes)
    loads = [sum(sizes[name] for name in shard) for shard in shards]
    assert max(loads) - min(loads) <= max(sizes.values(), default=0)


def test_what_is_saved_is_loaded(tmp_path):
    with_close = store(tmp_path)
    assert with_close.save(snapshot(5, 1.5), wait=True)
    with_close.close()
    found = load_latest(locate(tmp_path))
    assert found.step == 5
    assert found.meta == {"progress": {"step": 5}}
    assert same(found.tensors, snapshot(5, 1.5).tensors)


def test_a_snapshot_is_taken_before_save_returns(tmp_path):
    taken = snapshot(1)
    expected = {k: t.clone() for k, t in taken.tensors.items()}
    one = store(tmp_path)
    one.save(taken)
    for tensor in taken.tensors.values():
        tensor.add_(1000)  # as the optimiser does while the checkpoint is being written
    one.close()
    assert same(load_latest(locate(tmp_path)).tensors, expected)


def test_two_workers_write_disjoint_shards_and_one_worker_can_load_them(tmp_path):
    workers = [store(tmp_path, rank, 2) for rank in range(2)]
    for worker in workers:
        worker.save(snapshot(3))
    assert all(worker.close() for worker in workers)
    shards = sorted(path.name for path in (tmp_path / step_name(3)).glob("*.safetensors"))
    assert shards == ["0000-00000-of-00002.safetensors", "0000-00001-of-00002.safetensors"]
    assert same(load_latest(locate(tmp_path)).tensors, snapshot(3).tensors)


def test_nothing_is_committed_until_the_last_worker_is_done(tmp_path):
    first, second = store(tmp_path, 0, 2), store(tmp_path, 1, 2)
    first.save(snapshot(3))
    threading.Event().wait(0.5)
    assert load_latest(locate(tmp_path)) is None
    second.save(snapshot(3))
    assert first.close()
    assert load_latest(locate(tmp_path)).step == 3
    second.close()


def test_a_worker_that_never_delivers_costs_the_checkpoint_not_the_run(tmp_path, caplog):
    first = store(tmp_path, 0, 2, commit_timeout_s=0.3)
    assert not first.save(snapshot(3), wait=True)
    assert "did not arrive" in caplog.text
    assert committed_steps(locate(tmp_path)) == []
    first.close()


def test_shards_of_a_killed_attempt_are_never_mixed_with_new_ones(tmp_path):
    killed = store(tmp_path, 1, 2, attempt=0)
    killed.save(snapshot(3, value=-1.0), wait=True)
    first = store(tmp_path, 0, 2, attempt=1, commit_timeout_s=0.3)
    assert not first.save(snapshot(3, value=1.0), wait=True)
    assert load_latest(locate(tmp_path)) is None
    second = store(tmp_path, 1, 2, attempt=1)
    first.save(snapshot(3, value=1.0))
    second.save(snapshot(3, value=1.0))
    assert first.close()
    assert same(load_latest(locate(tmp_path)).tensors, snapshot(3, 1.0).tensors)
    for other in (killed, second):
        other.close()


def test_only_the_newest_are_kept_and_never_fewer(tmp_path):
    one = store(tmp_path, keep=2)
    for step in range(1, 6):
        one.save(snapshot(step), wait=True)
    one.close()
    assert committed_steps(locate(tmp_path)) == [4, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == [step_name(4), step_name(5)]


def test_old_checkpoints_that_cannot_be_deleted_cost_space_not_the_new_one(tmp_path, caplog, monkeypatch):
    """A bucket whose policy allows writing and forbids deleting, say."""
    one = store(tmp_path, keep=1)
    assert one.save(snapshot(1), wait=True)

    def forbidden(location, **_):
        raise StorageError(f"{location.uri}: access is denied")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete_folder", forbidden)
        assert one.save(snapshot(2, 5.0), wait=True)
    one.close()
    assert "could not be deleted" in caplog.text
    assert "was not written" not in caplog.text
    assert same(load_latest(locate(tmp_path)).tensors, snapshot(2, 5.0).tensors)


def test_the_driver_looks_past_a_damaged_commit_as_the_workers_do(tmp_path):
    one = store(tmp_path)
    for step in (1, 2):
        one.save(snapshot(step), wait=True)
    one.close()
    (tmp_path / step_name(2) / COMMIT).write_text("{")
    assert newest_meta(locate(tmp_path)) == {"progress": {"step": 1}}
    (tmp_path / step_name(1) / COMMIT).write_text("{")
    with pytest.raises(CheckpointError, match="all 2 committed checkpoints are damaged"):
        newest_meta(locate(tmp_path))


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "commit"])
def test_a_damaged_checkpoint_is_announced_and_the_one_before_is_taken(tmp_path, caplog, damage):
    one = store(tmp_path)
    for step in (1, 2):
        one.save(snapshot(step), wait=True)
    one.close()
    folder = tmp_path / step_name(2)
    (shard,) = folder.glob("*.safetensors")
    data = bytearray(shard.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
        shard.write_bytes(data)
    elif damage == "truncate":
        shard.write_bytes(data[: len(data) // 2])
    elif damage == "remove":
        shard.unlink()
    else:
        (folder / COMMIT).write_text("{")
    with caplog.at_level(logging.WARNING):
        assert load_latest(locate(tmp_path)).step == 1
    assert step_name(2) in caplog.text


def test_when_every_checkpoint_is_damaged_the_run_does_not_silently_start_afresh(tmp_path):
    one = store(tmp_path)
    one.save(snapshot(1), wait=True)
    one.close()
    next(tmp_path.rglob("*.safetensors")).unlink()
    with pytest.raises(CheckpointError, match="all 1 committed checkpoints are damaged"):
        load_latest(locate(tmp_path))


def test_an_unwritable_folder_costs_the_checkpoint_and_says_so(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    one = CheckpointStore(locate(tmp_path / "file" / "below"), Writer(0, 1, 0))
    assert not one.save(snapshot(1), wait=True)
    assert "was not written" in caplog.text
    one.close()


def test_the_commit_lists_size_and_digest_of_every_shard(tmp_path):
    one = store(tmp_path)
    one.save(snapshot(1), wait=True)
    one.close()
    commit = json.loads((tmp_path / step_name(1) / COMMIT).read_text())
    for name, info in commit["shards"].items():
        assert info["bytes"] == (tmp_path / step_name(1) / name).stat().st_size
        assert len(info["sha256"]) == 64


# Model and optimiser as named tensors


def network(width=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, width, 3, padding=1), nn.GroupNorm(width, width), nn.Conv3d(width, 2, 1)
    )


def optimizer_of(name, model):
    if name == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-2)
    return torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)


def train_some(model, optimizer, steps, seed):
    generator = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss = model(torch.randn(1, 1, 6, 6, 6, generator=generator)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_training_goes_on_bit_for_bit_after_a_round_trip_through_a_file(tmp_path, name):
    model = network()
    optimizer = optimizer_of(name, model)
    train_some(model, optimizer, 3, seed=1)
    one = store(tmp_path)
    one.save(Snapshot(3, state_tensors(model, optimizer), {}), wait=True)
    one.close()
    expected = train_some(model, optimizer, 4, seed=2)

    again = network()
    other = optimizer_of(name, again)
    restore(again, other, load_latest(locate(tmp_path)).tensors)
    assert train_some(again, other, 4, seed=2) == expected


def test_a_checkpoint_of_another_architecture_names_the_differences():
    with pytest.raises(CheckpointError) as caught:
        restore(
            network(width=8), None, state_tensors(network(), torch.optim.SGD(network().parameters(), lr=1))
        )
    assert "0.weight is (4, 1, 3, 3, 3), expected (8, 1, 3, 3, 3)" in str(caught.value)


def test_an_empty_run_has_no_checkpoint(tmp_path):
    assert load_latest(locate(tmp_path / "nothing")) is None
    assert not storage.exists(locate(tmp_path / "nothing"))
