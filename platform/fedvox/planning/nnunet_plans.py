"""nnU-Net's plans JSON, read and written.

Plans of nnU-Net 2.4 and later say `architecture`; older ones spread the same over a dozen keys, and are read too.
Keys that are not understood are kept and written back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fedvox.errors import ConfigError
from fedvox.planning.facts import IntensityProperties
from fedvox.planning.footprint import Network
from fedvox.planning.plan import Configuration, ExperimentPlan
from fedvox.planning.topology import Topology
from fedvox.storage import Location, exists, locate, read_bytes, write_atomic

_NETWORKS: dict[str, Network] = {"PlainConvUNet": "plain", "ResidualEncoderUNet": "resenc"}
_CLASSES = {
    network: f"dynamic_network_architectures.architectures.unet.{name}" for name, network in _NETWORKS.items()
}
_BLOCKS_KEY = {"plain": "n_conv_per_stage", "resenc": "n_blocks_per_stage"}
_RESAMPLING: dict[str, Any] = {
    "resampling_fn_data": "resample_data_or_seg_to_shape",
    "resampling_fn_seg": "resample_data_or_seg_to_shape",
    "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
    "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {
        "is_seg": False,
        "order": 1,
        "order_z": 0,
        "force_separate_z": None,
    },
}
_PLAN_KEYS = (
    "dataset_name", "plans_name", "original_median_spacing_after_transp", "original_median_shape_after_transp",
    "image_reader_writer", "transpose_forward", "transpose_backward", "configurations", "experiment_planner_used",
    "foreground_intensity_properties_per_channel",
)  # fmt: skip
_CONFIGURATION_KEYS = (
    "data_identifier", "batch_size", "patch_size", "median_image_size_in_voxels", "spacing", "normalization_schemes",
    "use_mask_for_norm", "architecture", "batch_dice", "previous_stage", "next_stage", "inherits_from",
)  # fmt: skip
_OLD_KEYS = (
    "UNet_class_name", "UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder",
    "n_conv_per_stage_decoder", "num_pool_per_axis", "pool_op_kernel_sizes", "conv_kernel_sizes",
)  # fmt: skip


# ---- writing -----------------------------------------------------------------------------------------------


def to_nnunet(plan: ExperimentPlan) -> dict[str, Any]:
    """The plan as nnU-Net's own planner writes it."""
    configurations = {
        name: _cascade(configuration) if name == "3d_cascade_fullres" else _configuration(configuration)
        for name, configuration in plan.configurations.items()
    }
    return {
        "dataset_name": plan.dataset_name,
        "plans_name": plan.plans_name,
        "original_median_spacing_after_transp": list(plan.median_spacing_mm),
        "original_median_shape_after_transp": list(plan.median_shape),
        "image_reader_writer": plan.image_reader,
        "transpose_forward": list(plan.transpose),
        "transpose_backward": list(plan.transpose_back),
        "configurations": configurations,
        "experiment_planner_used": plan.planner,
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {
            str(index): asdict(channel) for index, channel in enumerate(plan.intensity)
        },
        **plan.extra,
    }


def write_plans(plan: ExperimentPlan, location: Location) -> None:
    """Writes nnU-Net's plans JSON, atomically."""
    write_atomic(location, (json.dumps(to_nnunet(plan), indent=4) + "\n").encode())


def _cascade(configuration: Configuration) -> dict[str, Any]:
    return {"inherits_from": "3d_fullres", "previous_stage": configuration.previous_stage}


def _configuration(configuration: Configuration) -> dict[str, Any]:
    links = {"previous_stage": configuration.previous_stage, "next_stage": configuration.next_stage}
    return {
        "data_identifier": configuration.data_identifier,
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": configuration.batch_size,
        "patch_size": list(configuration.patch_size),
        "median_image_size_in_voxels": list(configuration.median_shape),
        "spacing": list(configuration.spacing_mm),
        "normalization_schemes": list(configuration.normalization),
        "use_mask_for_norm": list(configuration.masked),
        **_RESAMPLING,
        "architecture": _architecture(configuration),
        "batch_dice": configuration.batch_dice,
        **{key: value for key, value in links.items() if value is not None},
        **configuration.extra,
    }


def _architecture(configuration: Configuration) -> dict[str, Any]:
    axes = len(configuration.patch_size)
    return {
        "network_class_name": _CLASSES[configuration.network],
        "arch_kwargs": {
            "n_stages": configuration.topology.num_stages,
            "features_per_stage": list(configuration.features),
            "conv_op": f"torch.nn.modules.conv.Conv{axes}d",
            "kernel_sizes": [list(kernel) for kernel in configuration.topology.kernels],
            "strides": [list(stride) for stride in configuration.topology.strides],
            _BLOCKS_KEY[configuration.network]: list(configuration.encoder_blocks),
            "n_conv_per_stage_decoder": list(configuration.decoder_blocks),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{axes}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }


# ---- reading -----------------------------------------------------------------------------------------------


def read_plans(uri: str) -> ExperimentPlan:
    """Reads nnU-Net's plans JSON.

    Raises:
        ConfigError: the file is missing, is no plans file, or a field of it cannot be used (which is named).
    """
    location = locate(uri)
    if not exists(location):
        raise ConfigError(
            f"plans file {uri} does not exist", "Give nnU-Net's nnUNetPlans.json, or plan anew."
        )
    try:
        value = json.loads(read_bytes(location))
    except ValueError as error:
        raise ConfigError(f"{uri} is not valid JSON: {error}", "Plan again, or restore the file.") from None
    return from_nnunet(value, source=uri)


def from_nnunet(value: Any, *, source: str = "plans") -> ExperimentPlan:
    """The inverse of `to_nnunet`.

    Args:
        value: content of the plans JSON.
        source: names it in error messages.

    Raises:
        ConfigError: see `read_plans`.
    """
    if not isinstance(value, Mapping) or "configurations" not in value:
        raise ConfigError(
            f"{source} is no plans file of nnU-Net (no configurations)", "Give nnUNetPlans.json."
        )
    raw = value["configurations"]
    with _Named(source):
        configurations = {name: _read_configuration(name, _inherited(name, raw), source) for name in raw}
        channels = value["foreground_intensity_properties_per_channel"]
        return ExperimentPlan(
            dataset_name=str(value["dataset_name"]),
            plans_name=str(value["plans_name"]),
            planner=str(value.get("experiment_planner_used", "")),
            transpose=_three(value["transpose_forward"], int),
            median_spacing_mm=_three(value["original_median_spacing_after_transp"], float),
            median_shape=_three(value["original_median_shape_after_transp"], int),
            intensity=tuple(
                IntensityProperties(**{k: float(v) for k, v in channels[key].items()})
                for key in sorted(channels, key=int)
            ),
            configurations=configurations,
            image_reader=str(value.get("image_reader_writer", "SimpleITKIO")),
            extra={k: v for k, v in value.items() if k not in (*_PLAN_KEYS, "label_manager")},
        )


class _Named:
    """Turns what goes wrong while a plan is taken apart into an error that names the plan and the field."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        return None

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: object) -> None:
        if isinstance(error, KeyError):
            raise ConfigError(f"{self.what} has no field {error}", "Plan again with this version.") from error
        if isinstance(error, TypeError | ValueError | AttributeError):
            raise ConfigError(
                f"{self.what} cannot be used: {error}", "Plan again with this version."
            ) from error


def _inherited(name: str, raw: Mapping[str, Any], seen: tuple[str, ...] = ()) -> dict[str, Any]:
    """A configuration with the fields of those that it inherits from."""
    if name not in raw:
        raise KeyError(f"configurations.{name}")
    own = dict(raw[name])
    parent = own.pop("inherits_from", None)
    if parent is None:
        return own
    if parent in (*seen, name):
        raise ValueError(f"configuration {name!r} inherits from itself")
    return {**_inherited(parent, raw, (*seen, name)), **own}


def _read_configuration(name: str, raw: dict[str, Any], source: str) -> Configuration:
    with _Named(f"{source}: configuration {name!r}"):
        network, keywords = _read_architecture(raw)
        patch = tuple(int(n) for n in raw["patch_size"])
        topology = Topology(
            _triples(keywords["strides"], len(patch)), _triples(keywords["kernel_sizes"], len(patch)), patch
        )
        _check_divisible(topology, patch)
        known = (*_CONFIGURATION_KEYS, *_OLD_KEYS, *_RESAMPLING, "preprocessor_name")
        return Configuration(
            name=name,
            spacing_mm=tuple(float(s) for s in raw["spacing"]),
            patch_size=patch,
            batch_size=int(raw["batch_size"]),
            median_shape=tuple(float(n) for n in raw["median_image_size_in_voxels"]),
            topology=topology,
            network=network,
            features=tuple(int(n) for n in keywords["features_per_stage"]),
            encoder_blocks=tuple(int(n) for n in keywords[_BLOCKS_KEY[network]]),
            decoder_blocks=tuple(int(n) for n in keywords["n_conv_per_stage_decoder"]),
            normalization=tuple(map(str, raw["normalization_schemes"])),
            masked=tuple(bool(flag) for flag in raw["use_mask_for_norm"]),
            batch_dice=bool(raw.get("batch_dice", False)),
            data_identifier=str(raw.get("data_identifier", "")),
            previous_stage=raw.get("previous_stage"),
            next_stage=_first(raw.get("next_stage")),
            extra={key: value for key, value in raw.items() if key not in known},
        )


def _read_architecture(raw: Mapping[str, Any]) -> tuple[Network, dict[str, Any]]:
    if "architecture" in raw:
        keywords = dict(raw["architecture"]["arch_kwargs"])
        class_name = str(raw["architecture"]["network_class_name"]).rsplit(".", 1)[-1]
    else:  # before 2.4
        class_name = str(raw["UNet_class_name"])
        stages = len(raw["n_conv_per_stage_encoder"])
        base, widest = int(raw["UNet_base_num_features"]), int(raw["unet_max_num_features"])
        keywords = {
            "features_per_stage": [min(widest, base * 2**stage) for stage in range(stages)],
            "kernel_sizes": raw["conv_kernel_sizes"],
            "strides": raw["pool_op_kernel_sizes"],
            "n_conv_per_stage": raw["n_conv_per_stage_encoder"],
            "n_blocks_per_stage": raw["n_conv_per_stage_encoder"],
            "n_conv_per_stage_decoder": raw["n_conv_per_stage_decoder"],
        }
    if class_name not in _NETWORKS:
        raise ValueError(f"architecture {class_name!r} is not known (known: {', '.join(_NETWORKS)})")
    return _NETWORKS[class_name], keywords


def _check_divisible(topology: Topology, patch: tuple[int, ...]) -> None:
    if any(n % d for n, d in zip(patch, topology.divisor, strict=True)):
        fitting = [max(d, round(n / d) * d) for n, d in zip(patch, topology.divisor, strict=True)]
        raise ValueError(
            f"patch_size {list(patch)} is not divisible by {list(topology.divisor)}, the product of its strides; "
            f"nearest that is: {fitting}"
        )


def _triples(values: Any, axes: int) -> tuple[tuple[int, ...], ...]:
    return tuple((int(v),) * axes if isinstance(v, int) else tuple(int(n) for n in v) for v in values)


def _three(values: Any, kind: Any) -> tuple[Any, Any, Any]:
    a, b, c = (kind(value) for value in values)
    return a, b, c


def _first(value: Any) -> str | None:
    """`next_stage` is a name, or a list of them in hand-written plans."""
    chosen = value[0] if isinstance(value, list) and value else value
    return None if not chosen else str(chosen)
