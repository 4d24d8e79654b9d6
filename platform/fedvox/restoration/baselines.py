"""What a prior is measured against: no training, or a network that is trained for one task only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from fedvox.errors import ConfigError
from fedvox.restoration.deepinv_loader import deepinv

Baseline = Callable[[Any, Tensor], Tensor]


def zero_filled(physics: Any, y: Tensor) -> Tensor:
    """What is not measured is zero; for larger voxels, nearest-neighbour enlargement."""
    if hasattr(physics, "voxels"):
        return cast(Tensor, physics.A_dagger(y))
    return cast(Tensor, physics.A_adjoint(y))


def total_variation(physics: Any, y: Tensor, *, weight: float = 0.01, steps: int = 60) -> Tensor:
    """Least squares with isotropic total variation, by FISTA with deepinv's proximal step."""
    prox = deepinv.models.TVDenoiser(n_it_max=30, crit=1e-6)

    def shrink(x: Tensor, step: float) -> Tensor:
        prox.restart = True
        return cast(Tensor, prox(x, ths=weight * step))

    return _fista(physics, y, shrink, steps)


def wavelet(physics: Any, y: Tensor, *, weight: float = 0.01, steps: int = 60) -> Tensor:
    """Least squares with a sparse wavelet transform (deepinv's dictionary of db8 and db4, which needs ptwt)."""
    try:
        prox = deepinv.models.WaveletDictDenoiser(
            list_wv=["db8", "db4", "haar"], max_iter=3, level=3, wvdim=y.ndim - 2 if y.ndim == 5 else 2
        )
    except ImportError as error:
        raise ConfigError("the wavelet baseline needs ptwt", "pip install 'fedvox[restoration]'.") from error
    return _fista(physics, y, lambda x, step: cast(Tensor, prox(x, ths=weight * step)), steps)


def block_matching(physics: Any, y: Tensor, *, sigma: float = 0.03, steps: int = 12) -> Tensor:
    """Proximal gradient steps with BM3D (deepinv's, in PyTorch) as the denoiser; 2D."""
    denoiser = deepinv.models.BM3D(use_legacy=False)
    return _fista(physics, y, lambda x, _step: cast(Tensor, denoiser(x, sigma)), steps, accelerated=False)


def _fista(
    physics: Any,
    y: Tensor,
    shrink: Callable[[Tensor, float], Tensor],
    steps: int,
    *,
    accelerated: bool = True,
) -> Tensor:
    """Accelerated proximal gradient (Beck and Teboulle 2009)."""
    step = float(physics.voxels) if hasattr(physics, "voxels") else 1.0
    with torch.no_grad():
        x = momentum = cast(Tensor, physics.A_dagger(y))
        t = 1.0
        for _ in range(steps):
            after = shrink(momentum - step * physics.A_adjoint(physics.A(momentum) - y), step)
            t_after = (1 + (1 + 4 * t * t) ** 0.5) / 2
            momentum = after + ((t - 1) / t_after) * (after - x) if accelerated else after
            x, t = after, t_after
    return x


BASELINES: dict[str, Baseline] = {
    "zero-filled": zero_filled, "tv": total_variation, "wavelet": wavelet, "bm3d": block_matching,
}  # fmt: skip
