"""Checkpoints of other projects, under our names.

    weights = translate(read_weights("checkpoint_final.pth"))
    model = build_from_config(config_of(weights.tensors))    # or a model of your own
    report = load_pretrained(model, weights.tensors)

Known are nnU-Net's U-Nets (plain and ResEnc) and Primus (versions 1 and 2), MedNeXt's original code, and MONAI's
MedNeXt. Files are read without running any code that they may contain.

Each layout is a list of rules: a pattern of a name, and what it becomes. Names that no rule knows are refused.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvox.errors import CheckpointError

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

# Where training programs keep the weights in their checkpoints, in the order in which to look.
_WEIGHTS_KEYS = ("network_weights", "state_dict", "model_state_dict", "model")
# Wrappers of data-parallel training and of torch.compile.
_WRAPPERS = ("module.", "_orig_mod.", "network.")


@dataclass(frozen=True)
class Weights:
    """Weights under our names.

    Attributes:
        source: whose layout they had: "fedvox", "nnunet", "primus", "mednext" or "monai-mednext".
        tensors: by our names.
        ignored: names in the file that a network does not need, such as repetitions.
    """

    source: str
    tensors: dict[str, Tensor]
    ignored: tuple[str, ...] = ()


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The named tensors of a checkpoint file: safetensors, or what `torch.save` writes.

    Raises:
        CheckpointError: the file is missing, unreadable, would run code when loaded, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist", "give the path of a checkpoint file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        with torch.serialization.safe_globals(_harmless_numpy()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} cannot be read as a checkpoint: {reason}",
            "copy the file again; if it holds more than tensors and numbers, save its state dict alone",
        ) from error
    return _tensors_of(content, path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged: {error}", "copy the file again") from error


def _tensors_of(content: Any, path: Path) -> dict[str, Tensor]:
    """The state dict in what a checkpoint holds, without wrappers' prefixes."""
    for key in _WEIGHTS_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    named = content if isinstance(content, Mapping) else {}
    tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path} holds no named tensors (looked under {', '.join(_WEIGHTS_KEYS)}, and at the top)",
            "give a checkpoint of nnU-Net, MedNeXt, MONAI or Fedvox",
        )
    for wrapper in _WRAPPERS * 2:
        if all(name.startswith(wrapper) for name in tensors):
            tensors = {name.removeprefix(wrapper): value for name, value in tensors.items()}
    return tensors


def _harmless_numpy() -> list[Any]:
    """What numbers that were logged as numpy scalars and arrays consist of; nnU-Net's checkpoints are full of them."""
    core: Any = getattr(np, "_core", None) or np.core  # renamed in numpy 2
    multiarray = core.multiarray
    kinds = (np.float64, np.float32, np.int64, np.int32, np.bool_)
    old_names = [
        (multiarray.scalar, "numpy.core.multiarray.scalar"),
        (multiarray._reconstruct, "numpy.core.multiarray._reconstruct"),
    ]
    dtypes = [type(np.dtype(kind)) for kind in kinds]
    return [multiarray.scalar, multiarray._reconstruct, *old_names, np.ndarray, np.dtype, *dtypes]


def translate(tensors: Mapping[str, Tensor]) -> Weights:
    """Weights of any known layout under our names.

    Raises:
        CheckpointError: the layout is unknown, or names in it are (they are listed).
    """
    for layout in _LAYOUTS:
        if any(re.match(layout.sign, name) for name in tensors):
            return layout.translate(tensors)
    raise CheckpointError(
        f"the weights are of no known layout; the first names are {', '.join(list(tensors)[:4])}",
        f"known are {', '.join(layout.source for layout in _LAYOUTS)}",
    )


@dataclass(frozen=True)
class _Layout:
    """How another project names and shapes what we have.

    Attributes:
        source: name of the layout.
        sign: pattern that only a name of this layout matches, at its start.
        rules: from the number of decoder stages; tried in order at a name's start, and the first match replaces.
        parts: replaced wherever they match, afterwards.
        stages: pattern of a decoder stage's names.
        skip: pattern of names to leave out.
        heads_transposed: heads are transposed convolutions (in, classes, 1, 1, 1).
    """

    source: str
    sign: str
    rules: Callable[[int], tuple[Rule, ...]] = lambda _: ()
    parts: tuple[Rule, ...] = ()
    stages: str = r"(?!)"
    skip: str = r"(?!)"
    heads_transposed: bool = False

    def translate(self, tensors: Mapping[str, Tensor]) -> Weights:
        """Names and shapes of a state dict in this layout."""
        ignored = tuple(name for name in tensors if re.search(self.skip, name))
        rules = self.rules(len({m[0] for m in (re.match(self.stages, name) for name in tensors) if m}))
        named = {name: self._rename(name, rules) for name in tensors if name not in ignored}
        unknown = [name for name, ours in named.items() if ours.split(".")[0] not in _PARTS]
        if unknown:
            raise CheckpointError(
                f"{self.source} weights have names that are not of a known network: {', '.join(unknown[:5])}",
                "known are the networks that the documentation of the backbones lists",
            )
        return Weights(
            self.source, {ours: self._reshape(ours, tensors[n]) for n, ours in named.items()}, ignored
        )

    def _rename(self, name: str, rules: tuple[Rule, ...]) -> str:
        for pattern, replacement in rules:
            renamed, count = re.subn(rf"\A{pattern}", replacement, name)
            if count:
                name = renamed
                break
        for pattern, replacement in self.parts:
            name = re.sub(pattern, replacement, name)
        return name

    def _reshape(self, name: str, value: Tensor) -> Tensor:
        if self.heads_transposed and name.startswith("heads.") and value.ndim > 1:
            return value.transpose(0, 1).contiguous()
        return value.flatten() if ".grn." in name else value


def _numbered(prefix: str, number: Callable[[int], int]) -> Callable[[re.Match[str]], str]:
    """`prefix.n.`, with n computed from the first number of the match."""
    return lambda match: f"{prefix}.{number(int(match[1]))}."


def _mednext_rules(_: int) -> tuple[Rule, ...]:
    return (
        (r"enc_block_(\d)\.", r"encoder.stages.\1."),
        (r"down_(\d)\.", r"encoder.downs.\1."),
        (r"bottleneck\.", "encoder.stages.4."),
        (r"up_(\d)\.", r"decoder.ups.\1."),
        (r"dec_block_(\d)\.", r"decoder.stages.\1."),
        (r"out_(\d)\.conv_out\.", r"heads.\1."),
    )


def _monai_rules(stages: int) -> tuple[Rule, ...]:
    return (
        (r"enc_stages\.", "encoder.stages."),
        (r"down_blocks\.", "encoder.downs."),
        (r"bottleneck\.", f"encoder.stages.{stages}."),
        (r"up_blocks\.(\d)\.", _numbered("decoder.ups", lambda n: stages - 1 - n)),
        (r"dec_stages\.(\d)\.", _numbered("decoder.stages", lambda n: stages - 1 - n)),
        (r"out_0\.conv_out\.", "heads.0."),
        (r"out_blocks\.(\d)\.conv_out\.", _numbered("heads", lambda n: stages - n)),
    )


def _nnunet_rules(stages: int) -> tuple[Rule, ...]:
    return (
        (r"encoder\.stem\.convs\.0\.", "stem."),
        # The plain U-Net's first convolution is our stem.
        (r"encoder\.stages\.0\.0\.convs\.0\.", "stem."),
        (r"encoder\.stages\.0\.0\.convs\.(\d+)\.", _numbered("encoder.stages.0", lambda n: n - 1)),
        (r"encoder\.stages\.(\d+)\.0\.convs\.", r"encoder.stages.\1."),
        (r"decoder\.stages\.(\d+)\.convs\.", _numbered("decoder.stages", lambda n: stages - 1 - n)),
        (r"decoder\.transpconvs\.(\d+)\.", _numbered("decoder.ups", lambda n: stages - 1 - n)),
        (r"decoder\.seg_layers\.(\d+)\.", _numbered("heads", lambda n: stages - 1 - n)),
    )


def _primus_rules(_: int) -> tuple[Rule, ...]:
    return (
        (r"down_projection\.(?:proj|final_proj)\.", "stem.project."),
        (r"down_projection\.stem\.blocks\.0\.", "stem.blocks.0."),
        (r"down_projection\.stages\.(\d)\.blocks\.0\.", _numbered("stem.blocks", lambda n: n + 1)),
        (r"up_projection\.decode\.2\.", "heads.0."),
        (r"up_projection\.decode\.(\d)\.0\.", r"decoder.ups.\1."),
        (r"up_projection\.decode\.(\d)\.1\.", r"decoder.norms.\1."),
        (r"eva\.pos_embed\Z", "encoder.position.weight"),
        (r"eva\.", "encoder."),
    )


_PARTS = ("stem", "encoder", "decoder", "heads")

_MEDNEXT_PARTS: tuple[Rule, ...] = (
    (r"\.conv1\.", ".depthwise."),
    (r"\.conv2\.", ".expand."),
    (r"\.conv3\.", ".compress."),
    (r"\.res_conv\.", ".shortcut."),
    (r"\.(?:grn|global_resp)_(gamma|beta)", r".grn.\1"),
)

_PRIMUS_PARTS: tuple[Rule, ...] = (
    (r"\.gamma_(\d)", r".scale\1.gamma"),
    (r"\.attn\.q_proj\.", ".attention.query."),
    (r"\.attn\.k_proj\.", ".attention.key."),
    (r"\.attn\.v_proj\.", ".attention.value."),
    (r"\.attn\.proj\.", ".attention.project."),
    (r"\.attn\.", ".attention."),
    (r"\.mlp\.fc1_g\.", ".mlp.gate."),
    (r"\.mlp\.fc1_x\.", ".mlp.value."),
    (r"\.mlp\.fc2\.", ".mlp.project."),
    (r"\.skip\.\d\.", ".project."),
)

_LAYOUTS = (
    _Layout(
        "mednext",
        sign=r"enc_block_0\.0\.",
        rules=_mednext_rules,
        parts=_MEDNEXT_PARTS,
        skip=r"\Adummy_tensor\Z",
        heads_transposed=True,
    ),
    _Layout(
        "monai-mednext",
        sign=r"enc_stages\.0\.0\.",
        rules=_monai_rules,
        parts=_MEDNEXT_PARTS,
        stages=r"dec_stages\.\d\.",
        heads_transposed=True,
    ),
    _Layout(
        "nnunet",
        sign=r"decoder\.transpconvs\.",
        rules=_nnunet_rules,
        parts=((r"\.blocks\.", "."), (r"\.skip\.\d\.", ".project.")),
        stages=r"decoder\.stages\.\d+\.",
        skip=r"\Adecoder\.encoder\.|\.all_modules\.",
    ),
    _Layout(
        "primus",
        sign=r"down_projection\.",
        rules=_primus_rules,
        parts=_PRIMUS_PARTS,
        skip=r"\Amask_token\Z|\.all_modules\.|\Aeva\.rope\.",
    ),
    _Layout("fedvox", sign=r"heads\.0\."),
)
