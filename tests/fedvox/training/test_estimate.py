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


def test_a_transformer_keeps_on_the_meta_device_what_the_real_kernel_keeps():
    patch = (64, 64, 64)
    network = build_model("primus-v2-tiny", in_channels=1, classes=3, patch_size=patch)
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept = {}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = network.train()(torch.randn(1, 1, *patch))
        outputs = logits if isinstance(logits, list) else [logits]
        logs = [torch.log_softmax(out, 1) for out in outputs]
        loss = sum(log.exp().mean() + log.mean() for log in logs)
    assert loss.isfinite()
    real = sum(size for place, size in kept.items() if place not in weights)
    with torch.device("meta"):
        counted = build_model("primus-v2-tiny", in_channels=1, classes=3, patch_size=patch)
    assert cost_of(counted, 1, patch, bf16=False).activation_bytes == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_attention_does_not_make_memory_grow_with_the_square_of_the_patch(checkpointed):
    per_voxel = []
    for edge in (64, 192):
        with torch.device("meta"):
            network = build_model(
                "primus-v1-s",
                in_channels=1,
                classes=3,
                patch_size=(edge,) * 3,
                checkpoint_blocks=checkpointed,
            )
        per_voxel.append(cost_of(network, 1, (edge,) * 3, bf16=True).activation_bytes / edge**3)
    assert per_voxel[1] == pytest.approx(per_voxel[0], rel=0.01)
