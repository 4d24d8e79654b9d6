"""How good a network is on lesions that it has not learnt from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from fedvox.tracking.config import PromptKind, PromptSection
from fedvox.tracking.examples import Example, ExampleSource
from fedvox.tracking.network import NetworkSegmenter
from fedvox.tracking.prompt_simulation import simulate_prompt
from fedvox.tracking.prompts import Mask
from fedvox.tracking.segmenters import Request
from fedvox.tracking.training import on_grid, stream


def held_out_dice(
    segment: NetworkSegmenter, source: ExampleSource, prompts: PromptSection, lesions: int
) -> dict[str, float]:
    """Mean Dice of held-out lesions: `dice` of all, `dice/KIND` of each prompt, `dice/follow-up` on a later scan.

    A vanished lesion of which nothing is said has a Dice of 1.

    Args:
        segment: the network, in evaluation mode.
        source: of lesions.
        prompts: what readers mark.
        lesions: how many.
    """
    found: dict[str, list[float]] = {}
    for index in range(lesions):
        kind = prompts.kinds[index % len(prompts.kinds)]
        example, rng = source.held_out(index), stream(0, index, 0)
        for name, value in _judged(segment, example, kind, rng, everything=prompts.target == "all"):
            found.setdefault(name, []).append(value)
    means = {f"dice/{name}": float(np.mean(values)) for name, values in sorted(found.items())}
    return {"dice": float(np.mean([v for values in found.values() for v in values])), **means}


def _judged(
    segment: NetworkSegmenter,
    example: Example,
    kind: PromptKind,
    rng: np.random.Generator,
    *,
    everything: bool,
) -> Iterator[tuple[str, float]]:
    scan, later = example.scan, example.later
    lesion = np.asarray(scan.lesions == example.lesion)
    prompt = simulate_prompt(lesion, kind, scan.spacing_mm, rng)
    said = segment(Request(scan.image, scan.spacing_mm, (prompt,)))
    truth = np.asarray(scan.lesions > 0) if everything else lesion
    yield kind, _dice(said, truth)
    if later is None:
        return
    carried = on_grid(said, later.scan)
    if not carried.any():
        yield "follow-up", float(not later.lesion.any())
        return
    said = segment(Request(later.scan.image, later.scan.spacing_mm, (Mask(carried),)))
    yield "follow-up", _dice(said, np.asarray(later.scan.lesions > 0) if everything else later.lesion)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    total = int(np.count_nonzero(a)) + int(np.count_nonzero(b))
    return 2 * int(np.count_nonzero(a & b)) / total if total else 1.0
