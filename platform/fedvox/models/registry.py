"""Every backbone by name.

    model = build_model("mednext-v2-base", in_channels=1, classes=168)
    model = build_model("mednext-v1-s", in_channels=1, classes=14, kernel=5, deep_supervision=False)

A name is a published (or small, for CPUs) size; overrides are fields of that architecture's config dataclass.
`describe` and `from_description` turn a model into plain data and back, for checkpoints and release files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from fedvox.errors import ConfigError
from fedvox.models import mednext, primus, resenc_unet
from fedvox.models.backbone import Backbone, nearest

# Config dataclass -> its model, and the named sizes of the architecture.
_ARCHITECTURES: dict[str, tuple[type[Any], Callable[[Any], Backbone], Mapping[str, Any]]] = {
    "mednext": (mednext.MedNeXtConfig, mednext.MedNeXt, mednext.SIZES),
    "resenc_unet": (resenc_unet.ResEncUNetConfig, resenc_unet.ResEncUNet, resenc_unet.SIZES),
    "primus": (primus.PrimusConfig, primus.Primus, primus.SIZES),
}


def list_models() -> list[str]:
    """The names that `build_model` knows."""
    return [name for _, _, sizes in _ARCHITECTURES.values() for name in sizes]


def model_config(name: str, *, in_channels: int, classes: int, **overrides: object) -> Any:
    """The config dataclass of a named size with overrides, without building the model.

    Args:
        name: one of `list_models()`.
        in_channels: image channels.
        classes: output channels, background included.
        overrides: fields of the architecture's config; lists count as tuples.

    Raises:
        ConfigError: unknown name or field (the nearest is named), or a value that the architecture refuses.
    """
    for _, _, sizes in _ARCHITECTURES.values():
        if name in sizes:
            return _replace(sizes[name], {"in_channels": in_channels, "classes": classes, **overrides})
    raise ConfigError(f"there is no model named {name!r}", nearest(name, list_models()))


def build_model(
    name: str, *, in_channels: int, classes: int, deep_supervision: bool = True, **overrides: object
) -> Backbone:
    """A freshly initialised backbone.

    Args:
        name: one of `list_models()`.
        in_channels: image channels.
        classes: output channels, background included.
        deep_supervision: heads at coarse levels too, whose logits are returned in training. Ignored by an
            architecture that has only one resolution of output.
        overrides: fields of the architecture's config dataclass, such as `kernel`; lists count as tuples.

    Raises:
        ConfigError: unknown name or field (the nearest is named), or a value that the architecture refuses.
    """
    overrides = {"deep_supervision": deep_supervision, **overrides}
    return build_from_config(model_config(name, in_channels=in_channels, classes=classes, **overrides))


def build_from_config(config: Any) -> Backbone:
    """The backbone that a config dataclass describes."""
    for kind, build, _ in _ARCHITECTURES.values():
        if isinstance(config, kind):
            return build(config)
    raise ConfigError(
        f"{type(config).__name__} is not the config of a backbone", "use model_config(name, ...)"
    )


def nearest_size(config: Any) -> tuple[str, dict[str, Any]]:
    """The named size that a config is most like, and the fields in which it differs.

    Args:
        config: a backbone's config dataclass, such as `recognition.config_of` reads off a checkpoint.

    Returns:
        Name and overrides, without channels, classes and deep supervision: with those, `build_model` builds the same
        network again.
    """
    apart = {"in_channels", "classes", "deep_supervision"}
    candidates = []
    for kind, _, sizes in _ARCHITECTURES.values():
        for name, size in sizes.items() if isinstance(config, kind) else ():
            values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
            changes = {k: v for k, v in values.items() if k not in apart and v != getattr(size, k)}
            candidates.append((len(changes), name, changes))
    if not candidates:
        raise ConfigError(
            f"{type(config).__name__} is not the config of a backbone", "use model_config(name, ...)"
        )
    _, name, changes = min(candidates, key=lambda candidate: candidate[0])
    return name, changes


def describe(model: Backbone) -> dict[str, Any]:
    """The architecture and config of a model as plain data that JSON can hold."""
    for family, (kind, _, _) in _ARCHITECTURES.items():
        if isinstance(model.config, kind):
            return {"architecture": family, "config": dataclasses.asdict(model.config)}
    raise ConfigError(
        f"{type(model).__name__} is not a registered backbone", "register it in models/registry.py"
    )


def from_description(description: Mapping[str, Any]) -> Backbone:
    """Build what `describe` described.

    Raises:
        ConfigError: unknown architecture or field.
    """
    family = str(description.get("architecture"))
    if family not in _ARCHITECTURES:
        raise ConfigError(f"there is no architecture named {family!r}", nearest(family, _ARCHITECTURES))
    kind, build, _ = _ARCHITECTURES[family]
    return build(_replace(kind(), description.get("config", {})))


def _replace(config: Any, changes: Mapping[str, object]) -> Any:
    """`config` with the fields in `changes`, refused by name where there is no such field."""
    known = {field.name for field in dataclasses.fields(config)}
    for key in changes:
        if key not in known:
            raise ConfigError(f"{type(config).__name__} has no field {key!r}", nearest(key, known))
    return dataclasses.replace(config, **{key: _frozen(value) for key, value in changes.items()})


def _frozen(value: object) -> object:
    """Lists as tuples, at every depth: YAML and JSON have only lists."""
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value
