"""From a data set's fingerprint to spacing, patch, batch and topology for a memory budget; splits into folds.

The rules are nnU-Net's (Isensee et al. 2021; ResEnc presets: Isensee et al. 2024), its plans are read and written,
and every decision carries its reason in words. Nothing here needs torch but `backbones`.
"""

from fedvox.planning.facts import DatasetFacts, load_facts
from fedvox.planning.nnunet_plans import read_plans, to_nnunet
from fedvox.planning.plan import Configuration, Decision, ExperimentPlan
from fedvox.planning.planner import plan_experiment
from fedvox.planning.presets import PRESETS, Preset
from fedvox.planning.splits import Fold, kfold, read_splits

__all__ = [
    "PRESETS",
    "Configuration",
    "DatasetFacts",
    "Decision",
    "ExperimentPlan",
    "Fold",
    "Preset",
    "kfold",
    "load_facts",
    "plan_experiment",
    "read_plans",
    "read_splits",
    "to_nnunet",
]
