"""One worker and several compute the same gradient of the same global batch, also when shares are unequal."""

import os
import subprocess
import sys

import pytest
import torch

WORKER = """
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from types import SimpleNamespace
from fedvox.models.registry import build_model
from fedvox.training.loss import DeepSupervision, DiceCrossEntropy
from fedvox.training.step import train_step

rank, size, batch_dice, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "True", sys.argv[4]
torch.set_num_threads(1)
if size > 1:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet{size}{batch_dice}", rank=rank, world_size=size)
torch.manual_seed(0)
network = build_model("mednext-v2-nano", in_channels=1, classes=3)
model = DistributedDataParallel(network) if size > 1 else network
data = torch.Generator().manual_seed(1)
image = torch.randn(3, 1, 16, 16, 16, generator=data)
label = torch.randint(0, 3, (3, 1, 16, 16, 16), generator=data)
annotated = torch.tensor([[True, True, True], [True, True, False], [True, True, True]])
label[1][label[1] == 2] = 0
mine = slice(rank, None, size)
batch = SimpleNamespace(image=image[mine], label=label[mine], annotated=annotated[mine])
optimizer = torch.optim.SGD(network.parameters(), lr=0.0)
result = train_step(
    model, batch, DeepSupervision(DiceCrossEntropy(batch_dice=batch_dice)), optimizer, grad_clip=1e9,
    weight=batch.image.shape[0] * size / 3,
)
loss = result.loss.clone()
if size > 1:
    dist.all_reduce(loss)
if rank == 0:
    gradients = {name: p.grad for name, p in network.named_parameters()}
    torch.save({"loss": loss / size, "gradients": gradients}, f"{folder}/result{size}{batch_dice}.pt")
if size > 1:
    dist.barrier()
    # Gloo's threads may outlive the interpreter's teardown, where C++ aborts the process ("terminate called without an
    # active exception"): an exit without one. What is tested here has been written by now.
    os._exit(0)
"""


def gradients(folder, size, batch_dice):
    script = folder / "worker.py"
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, script, str(rank), str(size), str(batch_dice), folder], env=environment
        )
        for rank in range(size)
    ]
    assert [process.wait(180) for process in processes] == [0] * size
    return torch.load(folder / f"result{size}{batch_dice}.pt", weights_only=True)


@pytest.mark.parametrize("batch_dice", [False, True])
def test_two_workers_with_unequal_shares_compute_the_gradient_of_one(tmp_path, batch_dice):
    one, two = (gradients(tmp_path, size, batch_dice) for size in (1, 2))
    assert torch.allclose(one["loss"], two["loss"], rtol=1e-5)
    largest = max(g.abs().max() for g in one["gradients"].values())
    for name, expected in one["gradients"].items():
        assert torch.allclose(expected, two["gradients"][name], rtol=1e-4, atol=1e-6 * float(largest)), name
