"""A training step of each backbone beside the original implementation of the same network: time and peak memory.

    python benchmarks/backbones.py [--size 64] [--steps 5] [--threads 2] [--clock wall] [--only mednext] [--json]

A step is forward and backward of one image of size³ with cross-entropy, float32, deep supervision off. Both sides are
checked to have the same number of parameters.

Time: both networks are in one process and take turns, so that whatever else the machine does meets both; the fastest
step of each counts. `--clock cpu` counts processor seconds instead, for a machine that is not idle.
Memory: each side runs two steps in a process of its own; counted is its peak above what it held before the first.

Peers: MONAI's MedNeXt (its blocks, wired as the original wires them, with GRN in every block for version 2), and
`dynamic-network-architectures` for nnU-Net's U-Nets and Primus.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedvox.models.registry import build_model, model_config

CLASSES = 14
GOALS = {"mednext": 0.75}
"""Largest ratio of times that counts as reached, by the first part of the name; 1.0 for the others."""


@dataclass(frozen=True)
class Network:
    """One line of the table.

    Attributes:
        label: as printed.
        name: of our backbone.
        fields: overrides of its config.
        peer: builds the same network of the other project, for images of size³.
        project: of the peer.
    """

    label: str
    name: str
    fields: dict[str, Any]
    peer: Callable[[Any], nn.Module]
    project: str


def monai_mednext(config: Any) -> nn.Module:
    """MONAI's blocks in the original's wiring: a down block has the ratio of the stage that it leads to."""
    from monai.networks.blocks.mednext_block import MedNeXtDownBlock
    from monai.networks.nets.mednext import MedNeXt

    levels, grn, kernel = config.levels, config.grn is not None, config.kernels[0][0]
    network = MedNeXt(
        init_filters=config.width,
        in_channels=config.in_channels,
        out_channels=config.classes,
        encoder_expansion_ratio=config.expansions[: levels - 1],
        bottleneck_expansion_ratio=config.expansions[levels - 1],
        decoder_expansion_ratio=config.expansions[levels:],
        kernel_size=kernel,
        use_residual_connection=True,
        blocks_down=config.blocks[: levels - 1],
        blocks_bottleneck=config.blocks[levels - 1],
        blocks_up=config.blocks[levels:],
        global_resp_norm=grn,
    )
    network.down_blocks = nn.ModuleList(
        MedNeXtDownBlock(width, 2 * width, ratio, kernel, use_residual_connection=True, global_resp_norm=grn)
        for width, ratio in zip(config.widths, config.down_ratios, strict=False)
    )
    return network


def original_unet(config: Any) -> nn.Module:
    """nnU-Net's network, as its plans build it."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet, ResidualEncoderUNet

    kind: Any = ResidualEncoderUNet if config.residual else PlainConvUNet
    blocks = "n_blocks_per_stage" if config.residual else "n_conv_per_stage"
    network: nn.Module = kind(
        config.in_channels,
        config.levels,
        config.features,
        nn.Conv3d,
        config.kernels,
        ((1, 1, 1), *config.strides),
        num_classes=config.classes,
        n_conv_per_stage_decoder=config.decoder_convs[::-1],
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
        deep_supervision=False,
        **{blocks: config.blocks},
    )
    return network


def original_primus(config: Any) -> nn.Module:
    """Primus as nnU-Net trains it."""
    declare_missing_torchvision_operators()
    primus = importlib.import_module("dynamic_network_architectures.architectures.primus")
    kind = primus.Primus if config.tokenizer == "patch" else primus.PrimusV2
    network: nn.Module = kind(
        config.in_channels,
        config.width,
        (8, 8, 8),
        config.classes,
        config.depth,
        config.attention_heads,
        config.patch,
        init_values=config.layer_scale,
        scale_attn_inner=True,
        drop_path_rate=config.drop_path,
    )
    return network


_LIBRARIES: list[torch.library.Library] = []


def declare_missing_torchvision_operators() -> None:
    """The peer imports timm, and timm torchvision, whose operators a CPU build may lack. They are never called."""
    while True:
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None or len(_LIBRARIES) > 20:
                raise
            library = torch.library.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor unused) -> Tensor")
            _LIBRARIES.append(library)
            for name in [module for module in sys.modules if module.split(".")[0] == "torchvision"]:
                del sys.modules[name]


DNA = "dynamic-network-architectures"
NETWORKS = (
    Network("MedNeXt-v1 S, kernel 3", "mednext-v1-s", {}, monai_mednext, "MONAI"),
    Network("MedNeXt-v1 S, kernel 5", "mednext-v1-s", {"kernel": 5}, monai_mednext, "MONAI"),
    Network("MedNeXt-v1 B, kernel 3", "mednext-v1-b", {}, monai_mednext, "MONAI"),
    Network("MedNeXt-v2 base", "mednext-v2-base", {}, monai_mednext, "MONAI"),
    Network("plain U-Net", "plain-unet", {}, original_unet, DNA),
    Network("ResEnc U-Net L", "resenc-unet-l", {}, original_unet, DNA),
    Network("Primus-v1 S", "primus-v1-s", {}, original_primus, DNA),
    Network("Primus-v2 S", "primus-v2-s", {}, original_primus, DNA),
)


def build(network: Network, side: str, size: int) -> nn.Module:
    """Our network or its peer."""
    fields = dict(network.fields)
    if network.name.startswith("primus"):
        fields["patch_size"] = size
    if side == "ours":
        return build_model(network.name, in_channels=1, classes=CLASSES, deep_supervision=False, **fields)
    return network.peer(
        model_config(network.name, in_channels=1, classes=CLASSES, deep_supervision=False, **fields)
    )


def resident_mib() -> float:
    """Memory that the process holds now."""
    with open("/proc/self/statm") as statm:  # noqa: PTH123 - a kernel file
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def prepare(network: Network, side: str, size: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in training, and an image and a label map for it."""
    torch.manual_seed(0)
    model = build(network, side, size).train()
    return model, torch.randn(1, 1, size, size, size), torch.randint(0, CLASSES, (1, size, size, size))


def step(model: nn.Module, image: Tensor, label: Tensor, clock: Callable[[], float]) -> float:
    """Seconds of a forward and backward pass."""
    model.zero_grad(set_to_none=True)
    began = clock()
    F.cross_entropy(model(image), label).backward()
    return clock() - began


def measure_memory(network: Network, side: str, size: int) -> dict[str, float]:
    """MiB that two steps need above what the process held before, and the number of parameters."""
    case = prepare(network, side, size)
    before = resident_mib()
    for _ in range(2):
        step(*case, time.perf_counter)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"peak_mib": peak - before, "parameters": sum(p.numel() for p in case[0].parameters())}


def measure_time(network: Network, size: int, steps: int, clock: Callable[[], float]) -> dict[str, float]:
    """Seconds of the fastest step of either side, taking turns; the first turn warms up and is not counted."""
    cases = {side: prepare(network, side, size) for side in ("ours", "peer")}
    seconds: dict[str, list[float]] = {side: [] for side in cases}
    for turn in range(steps + 1):
        for side in sorted(cases, reverse=turn % 2 == 1):
            seconds[side].append(step(*cases[side], clock))
            cases[side][0].zero_grad(set_to_none=True)
    return {side: min(values[1:]) for side, values in seconds.items()}


def in_process_of_its_own(arguments: argparse.Namespace, *what: str) -> dict[str, float]:
    """One measurement in a fresh interpreter."""
    options = {"--size": arguments.size, "--steps": arguments.steps, "--threads": arguments.threads}
    options["--clock"] = arguments.clock
    command = [sys.executable, __file__, "--measure", *what]
    command += [str(part) for option in options.items() for part in option]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(network: Network, arguments: argparse.Namespace) -> dict[str, Any]:
    """One line of the table."""
    seconds = in_process_of_its_own(arguments, network.label, "time")
    ours, peer = (in_process_of_its_own(arguments, network.label, side) for side in ("ours", "peer"))
    if ours["parameters"] != peer["parameters"]:
        raise RuntimeError(
            f"{network.label}: {ours['parameters']} parameters, {peer['parameters']} in the peer"
        )
    time_ratio, memory_ratio = seconds["ours"] / seconds["peer"], ours["peak_mib"] / peer["peak_mib"]
    goal = GOALS.get(network.name.split("-")[0], 1.0)
    return {
        "network": network.label,
        "peer": network.project,
        "parameters": int(ours["parameters"]),
        "ours_s": seconds["ours"],
        "peer_s": seconds["peer"],
        "time_ratio": time_ratio,
        "ours_mib": ours["peak_mib"],
        "peer_mib": peer["peak_mib"],
        "memory_ratio": memory_ratio,
        "goal_time_ratio": goal,
        "reached": time_ratio <= goal and memory_ratio <= 1.0,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "| network | parameters | step, ours / peer (s) | ratio | memory, ours / peer (MiB) | ratio |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['network']} | {r['parameters'] / 1e6:.2f} M | {r['ours_s']:.2f} / {r['peer_s']:.2f} "
        f"| {r['time_ratio']:.2f} | {r['ours_mib']:.0f} / {r['peer_mib']:.0f} | {r['memory_ratio']:.2f} |"
        for r in rows
    ]
    return "\n".join(lines)


def measure(arguments: argparse.Namespace) -> dict[str, float]:
    """What a process that `in_process_of_its_own` started is to find out."""
    label, what = arguments.measure
    torch.set_num_threads(arguments.threads)
    network = next(n for n in NETWORKS if n.label == label)
    if what == "time":
        clock = time.perf_counter if arguments.clock == "wall" else time.process_time
        return measure_time(network, arguments.size, arguments.steps, clock)
    return measure_memory(network, what, arguments.size)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", type=int, default=64, help="edge of the image, in voxels")
    parser.add_argument("--steps", type=int, default=5, help="steps per side, after one to warm up")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--only", default="", help="networks whose name begins with this")
    parser.add_argument("--json", action="store_true", help="print all figures as JSON")
    parser.add_argument("--measure", nargs=2, metavar=("LABEL", "WHAT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments)))
        return
    rows = []
    for network in (n for n in NETWORKS if n.name.startswith(arguments.only)):
        rows.append(compare(network, arguments))
        if not arguments.json:
            print(f"{rows[-1]['network']}: time x{rows[-1]['time_ratio']:.2f}", file=sys.stderr, flush=True)
    if arguments.json:
        print(json.dumps({"torch": torch.__version__, **vars(arguments), "rows": rows}, indent=1))
    else:
        print(table(rows))
    if not all(row["reached"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
