"""`fedvox finetune` and `jobs/finetune.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fedvox.commands.pretrain import (
    AsJson,
    ConfigFile,
    DryRun,
    HardwareName,
    Overrides,
    Resume,
    ResumeChoice,
    show_plan,
    start,
)
from fedvox.config import load_config
from fedvox.training.finetune_config import FinetuneConfig
from fedvox.training.phases import describe_phases

if TYPE_CHECKING:
    from fedvox.training.finetune import Transferred


def finetune(
    config: ConfigFile = None,
    set_: Overrides = None,
    resume: ResumeChoice = Resume.auto,
    dry_run: DryRun = False,
    hardware: HardwareName = "a100-80gb",
    as_json: AsJson = False,
) -> None:
    """Fine-tunes pretrained weights on a brick store of other data, or resumes where a run stopped.

    Backbone and patch are those of the weights, unless the configuration says otherwise. Image channels, classes,
    patch and kernels may differ: the weights are adapted, and a report says what became of every tensor.

    Examples:
        ray job submit --working-dir . -- python jobs/finetune.py --config jobs/configs/finetune_demo.yaml

        fedvox finetune --set init_from=runs/pretrain --set data.store=stores/liver --set schedule.kind=unfreeze

        fedvox finetune --config plans/liver/train.yaml --set init_from=checkpoint_final.pth --dry-run
    """
    found = load_config(FinetuneConfig, config, set_ or [])
    from fedvox.training.finetune import resolve  # torch

    found = resolve(found)
    if not dry_run:
        start(found, resume, as_json)
        return
    transferred = _try_transfer(found)
    show_plan(found, hardware, as_json, {"transfer": transferred and transferred.as_dict()})
    if not as_json:
        print("\n".join(f"{'phase':>11}  {phase}" for phase in describe_phases(found.phases())))
        print(f"\n{transferred or 'The store cannot be reached: the weights were not tried.'}")


def _try_transfer(config: FinetuneConfig) -> Transferred | None:
    """What would become of the weights, where the store can be reached."""
    from fedvox.errors import DataError, StorageError
    from fedvox.training.finetune import initialise
    from fedvox.training.session import new_network, open_data

    try:
        store, _ = open_data(config.data)
    except (StorageError, DataError):
        if config.data.expect is None:
            raise
        return None
    network = new_network(config, len(store.meta.channel_names), len(store.meta.structures))
    return initialise(config, network, store.meta)
