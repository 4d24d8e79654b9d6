"""deepinv, imported such that it works beside a PyTorch without the libraries that torchvision was built for.

deepinv imports torchvision, and torchvision registers fake kernels for its compiled operators. Where its compiled
library cannot be loaded (a CUDA build of torchvision beside a CPU build of PyTorch) there are no such operators, and
registering fails, although neither deepinv nor this package calls any of them. Those registrations are left out.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

from fedvox.errors import ConfigError


def load_deepinv() -> Any:
    """The module `deepinv`.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("deepinv") is None:
        raise ConfigError(
            "restoration needs deepinv, which is not installed", "pip install 'fedvox[restoration]'."
        )
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        with mock.patch.object(
            torch.library, "register_fake", _without_torchvision(torch.library.register_fake)
        ):
            import torchvision  # noqa: F401
    import deepinv

    return deepinv


def _without_torchvision(register: Callable[..., Any]) -> Callable[..., Any]:
    def registering(name: Any, *args: Any, **options: Any) -> Any:
        if str(name).startswith("torchvision::"):
            return lambda function: function
        return register(name, *args, **options)

    return registering


deepinv = load_deepinv()
