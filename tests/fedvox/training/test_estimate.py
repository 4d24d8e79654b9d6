import pytest
import torch
from torch import nn

from fedvox.models.registry import build_model
from fedvox.training.estimate import HARDWARE, cost_of


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(1, 8, 3, padding=1)
        self.second = nn.Conv3d(8, 3, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def test_operations_and_activations_of_a_plain_network_are_those_counted_by_hand():
    with torch.device("meta"):
        network = Plain()
    cost = cost_of(network, 1, (16, 16, 16), bf16=False)
    voxels = 16**3
    assert cost.parameters == 1 * 8 * 27 + 8 + 8 * 3 + 3
    forward = 2 * voxels * (27 * 8 + 8 * 3)
    # Backward: weights' gradients cost as much as forward; so do inputs' but for the first layer's.
    assert cost.flops == forward * 2 + 2 * voxels * 8 * 3
    # Kept: the input, relu's output (also the second convolution's input), log-probabilities, probabilities.
    assert cost.activation_bytes == 4 * voxels * (1 + 8 + 3 + 3)
    assert cost_of(network, 1, (16, 16, 16), bf16=True).activation_bytes == cost.activation_bytes // 2


def test_activation_checkpointing_lowers_the_counted_memory():
    sizes = []
    for checkpointed in (False, True):
        with torch.device("meta"):
            network = build_model("mednext-v2-tiny", in_channels=1, classes=3, checkpoint_blocks=checkpointed)
        sizes.append(cost_of(network, 1, (32, 32, 32), bf16=False).activation_bytes)
    assert sizes[1] < 0.7 * sizes[0]


def test_counting_the_full_backbone_takes_no_memory():
    with torch.device("meta"):
        network = build_model("mednext-v2-base", in_channels=1, classes=168)
    cost = cost_of(network, 1, (128, 128, 128), bf16=True)
    assert cost.parameters == pytest.approx(62e6, rel=0.01)
    assert 1e12 < cost.flops < 1e13
    assert 1e9 < cost.activation_bytes < 1e11


def test_hardware_is_named_by_its_key():
    assert all(key == hardware.name for key, hardware in HARDWARE.items())
