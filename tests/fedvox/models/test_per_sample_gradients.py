"""Differentially private training needs each sample's own gradient: by vmap and by Opacus, against a loop."""

import pytest
import torch
from opacus.grad_sample import GradSampleModule
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fedvox.models.registry import build_model

MODELS = {
    "mednext-v1": ("mednext-v2-nano", {"grn": None}),
    "mednext-v2": ("mednext-v2-nano", {}),
    "mednext-v2-checkpointed": ("mednext-v2-nano", {"checkpoint_blocks": True}),
    "resenc-unet": ("resenc-unet-tiny", {"features": (4, 8, 8, 8)}),
    "primus-v1": (
        "primus-v1-s",
        {"patch_size": 16, "width": 12, "depth": 2, "attention_heads": 2, "drop_path": 0.0},
    ),
    "primus-v2": ("primus-v2-tiny", {"patch_size": 16, "width": 12, "depth": 2, "drop_path": 0.0}),
    "plain-unet": ("plain-unet", {"features": (4, 8), "blocks": (2, 2), "decoder_convs": (2,)}),
}


def loss_of(out: Tensor) -> Tensor:
    return (out * torch.linspace(-1, 1, out[0].numel()).view(out.shape[1:])).sum()


def looped(model: nn.Module, images: Tensor) -> list[dict[str, Tensor]]:
    """The gradients of each sample alone."""
    gradients = []
    for image in images:
        model.zero_grad()
        loss_of(model(image[None])).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    return gradients


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> nn.Module:
    name, fields = MODELS[request.param]
    model = build_model(name, in_channels=1, classes=2, deep_supervision=False, **fields)
    for parameter in model.parameters():
        if parameter.abs().max() == 0:
            nn.init.normal_(parameter, std=0.1)  # GRN starts at zero, where half of its gradient vanishes
    return model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 1, 16, 16, 16)


def assert_close_per_sample(mine: dict[str, Tensor], expected: list[dict[str, Tensor]]) -> None:
    # Of the largest gradient: a bias before a normalisation has a gradient of exactly zero, plus rounding.
    largest = max(gradient.abs().max() for sample in expected for gradient in sample.values())
    for name, gradients in mine.items():
        truth = torch.stack([sample[name] for sample in expected])
        assert (gradients - truth).abs().max() < 1e-5 * largest, name


def test_vmap_gives_every_samples_own_gradient(model: nn.Module, images: Tensor) -> None:
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], image: Tensor) -> Tensor:
        return loss_of(functional_call(model, parameters, (image[None],)))

    assert_close_per_sample(vmap(grad(loss), in_dims=(None, 0))(parameters, images), looped(model, images))


def test_opacus_gives_every_samples_own_gradient(model: nn.Module, images: Tensor) -> None:
    expected = looped(model, images)
    model.zero_grad()
    private = GradSampleModule(model, loss_reduction="sum", strict=True)
    loss_of(private(images)).backward()
    mine = {
        name.removeprefix("_module."): p.grad_sample
        for name, p in private.named_parameters()
        if p.requires_grad
    }
    assert_close_per_sample(mine, expected)


def test_a_samples_output_does_not_depend_on_its_batch(model: nn.Module, images: Tensor) -> None:
    together = model(images)
    alone = torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
