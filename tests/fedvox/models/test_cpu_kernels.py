"""The CPU formulations of convolution and normalisation against PyTorch's own, in float64 and on other layouts."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.models import depthwise
from fedvox.models.depthwise import DepthwiseConv3d, DepthwiseConvTranspose3d
from fedvox.models.memory_layout import has_fast_path, to_fast_layout
from fedvox.models.normalization import GlobalResponseNorm, InstanceNorm
from fedvox.models.pointwise import PointwiseConv3d, PointwiseConvTranspose3d

sizes = st.tuples(*[st.integers(1, 7)] * 3)
kernels = st.tuples(*[st.sampled_from([1, 3, 5, 7])] * 3)
strides = st.tuples(*[st.integers(1, 3)] * 3)
batches = st.integers(1, 3)


def assert_fast_equals_plain(layer: nn.Module, batch: int, channels: int, size: tuple[int, int, int]) -> None:
    """Output, input gradient and parameter gradients of the fast float32 path, against float64 on the plain one."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    image = torch.randn(batch, channels, *size) + 0.5
    fast = to_fast_layout(image).requires_grad_()
    assert has_fast_path(fast)
    out = layer(fast)
    pull = torch.randn_like(out)
    gradients = torch.autograd.grad(out, [fast, *layer.parameters()], pull)

    layer.double()
    plain = image.double().requires_grad_()
    assert not has_fast_path(plain)
    expected = layer(plain)
    wanted = torch.autograd.grad(expected, [plain, *layer.parameters()], pull.double())
    for mine, theirs in zip((out, *gradients), (expected, *wanted), strict=True):
        scale = max(1.0, theirs.abs().max().item())
        torch.testing.assert_close(mine.double() / scale, theirs / scale, rtol=0, atol=5e-6)


@settings(deadline=None, max_examples=40)
@given(batches, sizes, kernels, strides)
def test_depthwise_convolution_equals_pytorchs(batch, size, kernel, stride) -> None:
    assert_fast_equals_plain(DepthwiseConv3d(3, kernel, stride), batch, 3, size)


@settings(deadline=None, max_examples=40)
@given(batches, sizes, kernels, strides)
def test_transposed_depthwise_convolution_equals_pytorchs(batch, size, kernel, stride) -> None:
    assert_fast_equals_plain(DepthwiseConvTranspose3d(3, kernel, stride), batch, 3, size)


@settings(deadline=None, max_examples=25)
@given(batches, sizes, strides)
def test_pointwise_convolution_equals_pytorchs(batch, size, stride) -> None:
    assert_fast_equals_plain(PointwiseConv3d(4, 3, stride), batch, 4, size)


@settings(deadline=None, max_examples=25)
@given(batches, sizes, strides)
def test_transposed_pointwise_convolution_equals_pytorchs(batch, size, stride) -> None:
    assert_fast_equals_plain(PointwiseConvTranspose3d(4, 3, stride), batch, 4, size)


@settings(deadline=None, max_examples=25)
@given(batches, st.tuples(*[st.integers(2, 7)] * 3))
def test_instance_norm_equals_pytorchs(batch, size) -> None:
    assert_fast_equals_plain(InstanceNorm(4), batch, 4, size)


@settings(deadline=None, max_examples=25)
@given(batches, sizes, st.sampled_from(["mean", "sum"]))
def test_grn_equals_its_formula_under_autograd(batch, size, reduce) -> None:
    assert_fast_equals_plain(GlobalResponseNorm(4, reduce), batch, 4, size)


@pytest.mark.parametrize("layer", [DepthwiseConv3d(16, (3, 3, 3)), InstanceNorm(16), GlobalResponseNorm(16)])
def test_a_volume_of_many_blocks_is_as_exact_as_a_small_one(layer: nn.Module) -> None:
    assert_fast_equals_plain(layer.float(), 2, 16, (24, 40, 72))


def test_instance_norm_of_a_large_offset_is_more_exact_than_pytorchs_channels_last_kernel() -> None:
    image = to_fast_layout(torch.randn(1, 8, 48, 48, 48) + 10)
    truth = F.instance_norm(image.double())
    ours = (InstanceNorm(8)(image) - truth).abs().max()
    assert ours < 1e-5
    assert ours < (F.group_norm(image, 8) - truth).abs().max() / 10


@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_grn_is_its_published_formula(reduce: str) -> None:
    layer = GlobalResponseNorm(3, reduce, eps=1e-6).double()
    gamma, beta = np.array([0.5, -1.0, 2.0]), np.array([0.1, 0.0, -0.3])
    layer.gamma.data, layer.beta.data = torch.from_numpy(gamma), torch.from_numpy(beta)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5, 6))
    expected = np.empty_like(x)
    for b in range(2):
        energies = [math.sqrt((x[b, c] ** 2).sum()) for c in range(3)]
        divisor = (sum(energies) / 3 if reduce == "mean" else sum(energies)) + 1e-6
        for c in range(3):
            expected[b, c] = gamma[c] * (x[b, c] * energies[c] / divisor) + beta[c] + x[b, c]
    np.testing.assert_allclose(layer(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-12)


def test_grn_is_the_identity_at_initialisation_on_both_paths() -> None:
    x = torch.randn(2, 5, 3, 4, 5)
    layer = GlobalResponseNorm(5)
    for image in (x, to_fast_layout(x)):
        assert torch.equal(layer(image), x)


def test_the_sum_rescales_gamma_by_the_channel_count() -> None:
    x = torch.randn(1, 6, 4, 4, 4, dtype=torch.float64)
    by_mean, by_sum = (
        GlobalResponseNorm(6, "mean", eps=0).double(),
        GlobalResponseNorm(6, "sum", eps=0).double(),
    )
    by_mean.gamma.data.fill_(0.7)
    by_sum.gamma.data.fill_(0.7 * 6)
    torch.testing.assert_close(by_mean(x), by_sum(x))


def test_grn_of_an_empty_channel_has_a_finite_gradient() -> None:
    x = torch.randn(1, 4, 3, 3, 3)
    x[:, 1] = 0
    layer = GlobalResponseNorm(4)
    layer.gamma.data.fill_(1.0)
    for image in (x, to_fast_layout(x)):
        image = image.detach().requires_grad_()
        layer(image).square().sum().backward()
        assert image.grad.isfinite().all()
        assert image.grad[:, 1].abs().max() == 0


@pytest.mark.parametrize(
    "make", [lambda: DepthwiseConv3d(4, (3, 3, 3)), lambda: InstanceNorm(4), lambda: PointwiseConv3d(4, 2)]
)
def test_the_fast_path_keeps_channels_last_memory(make: Callable[[], nn.Module]) -> None:
    out = make()(to_fast_layout(torch.randn(2, 4, 5, 6, 7)))
    assert has_fast_path(out)


def test_other_dtypes_layouts_autocast_and_compilation_take_pytorchs_kernels() -> None:
    image = to_fast_layout(torch.randn(1, 4, 4, 4, 4))
    assert has_fast_path(image)
    assert not has_fast_path(image.double())
    assert not has_fast_path(image.contiguous())
    assert not has_fast_path(image[..., ::2])
    assert not has_fast_path(to_fast_layout(torch.randn(1, 1, 4, 4, 4)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not has_fast_path(image)
    assert to_fast_layout(torch.empty(1, 2, 3, 3, 3, device="meta")).is_contiguous()


def test_the_depthwise_weight_gradient_never_calls_a_dense_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    widths: list[int] = []
    original: Callable[..., Tensor] = depthwise._gradient_2d

    def record(x: Tensor, grad: Tensor, filters: Tensor, *geometry: object) -> Tensor:
        widths.append(filters.shape[-1])
        return original(x, grad, filters, *geometry)

    monkeypatch.setattr(depthwise, "_gradient_2d", record)
    layer = DepthwiseConv3d(16, (5, 5, 5))
    layer(to_fast_layout(torch.randn(1, 16, 8, 8, 8))).sum().backward()
    assert sorted(widths) == [2] * 5 + [3] * 5  # five planes, each of at most three columns
