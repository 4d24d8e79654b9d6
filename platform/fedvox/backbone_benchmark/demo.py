"""The demo's two stores: the MNI152 brain as some scanners would have acquired it, drawn from two seeds."""

from __future__ import annotations

import logging
from pathlib import Path

from fedvox.backbone_benchmark.config import BackboneBenchmarkConfig
from fedvox.data.demo import DemoOptions, write_demo
from fedvox.data.ingest import ingest
from fedvox.data.ingest_config import IngestConfig, SourceConfig
from fedvox.training.config import expand

log = logging.getLogger(__name__)

TARGET = DemoOptions(cases=15, resolution_mm=3.0, seed=0)
PRETRAINING = DemoOptions(cases=9, resolution_mm=3.0, seed=1)


def prepare(config: BackboneBenchmarkConfig) -> None:
    """Writes and ingests what is not there yet: the recipe's store, and the pretraining's.

    Raises:
        FedvoxError: nilearn, whose brain it is, is not installed, or a folder cannot be written.
    """
    data = config.recipe.get("data", {})
    _prepare(expand(data.get("store", "")), TARGET)
    if config.pretrain is not None:
        _prepare(expand(config.pretrain.store), PRETRAINING)


def _prepare(store: str, options: DemoOptions) -> None:
    folder = Path(store)
    if (folder / "manifest.parquet").is_file():
        return
    log.info("writing %d simulated acquisitions of the MNI152 brain for %s", options.cases, store)
    dataset = write_demo(folder.with_name(f"{folder.name}-raw"), options)
    ingest(IngestConfig(sources=(SourceConfig(path=str(dataset)),), output=store, workers=0))
