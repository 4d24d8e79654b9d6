"""Cases one after the other, for tools that stop at the first bad one: it must not cost the others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from fedvox.benchmark.volumes import list_images
from fedvox.errors import RunError


def for_each_case(images: Path, predict: Callable[[str, list[Path]], None]) -> None:
    """Call a function for every case of a folder; all are tried.

    Args:
        images: holds CASE_0000.nii.gz …
        predict: takes a case's name and its images by channel.

    Raises:
        DataError: the folder holds no images.
        RunError: cases failed; the first one's reason is told.
    """
    cases = list_images(images)
    failed: dict[str, str] = {}
    for case, channels in cases.items():
        try:
            predict(case, channels)
        except Exception as error:  # noqa: BLE001 - of another package: any class; the case is reported by name
            failed[case] = f"{type(error).__name__}: {error}"
        print(f"{case} {failed.get(case, 'done')}", file=sys.stderr)  # noqa: T201
    if failed:
        case, reason = next(iter(failed.items()))
        raise RunError(
            f"{len(failed)} of {len(cases)} cases failed: {case}: {reason}", "See the log for the others."
        )
