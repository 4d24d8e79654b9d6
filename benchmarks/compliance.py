"""Speed of the compliance package: scoring many assessments, reading them, one answer to disk, start-up of the CLI.

    python benchmarks/compliance.py                      # about a minute
    python benchmarks/compliance.py --assessments 2000 --json result.json

1. `score`: assessments of the combined profile (283 answers each, all different), scored one after the other on one
   thread. They are made in batches beforehand, so that only scoring is timed. The mix is that of a coordinator's inbox:
   answers 60 % yes, 25 % partly, 15 % no; 60 % with a document, of these a fifth read by a second person.
2. `score, all read twice`: every answer documented and read by a second person, the slowest mix (a SHA-256 each).
3. `read`: the same assessments from JSON text, checked strictly and validated, as a coordinator receives them;
   `json.loads` of the same text beside it is the yardstick for a busy machine, since both slow down alike. `read and
   score` is both in one; `in N processes` is that on all cores, its wall-clock time that of the slowest process.
4. `answer`: one answer given: rules, history line flushed to disk, state file flushed and renamed.
5. `start-up`: `fedvox-compliance --help` against an empty interpreter and against typer alone, as ratios.

Times are wall-clock; `cpu_s` is the process's CPU time, which other work on the machine hardly touches.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from fedvox_compliance.assessment import (
    Answer,
    Assessment,
    CatalogueRef,
    Entry,
    Evidence,
    SecondPerson,
    claim_sha256,
)
from fedvox_compliance.catalogue import Catalogue, Control, load_catalogue
from fedvox_compliance.files import parse_assessment
from fedvox_compliance.scoring import score
from fedvox_compliance.workspace import Workspace

TODAY = dt.date(2026, 11, 24)
BATCH = 1
Item = TypeVar("Item")


@dataclass(frozen=True)
class Timing:
    """What one section took."""

    name: str
    count: int
    wall_s: float
    cpu_s: float

    @property
    def per_item_ms(self) -> float:
        """Milliseconds of CPU for one."""
        return 1000 * self.cpu_s / self.count


def make_entry(control: Control, generator: random.Random, *, read_twice: bool) -> Entry:
    """One answer of the mix."""
    drawn = generator.random()
    answer = Answer.YES if drawn < 0.6 else Answer.PARTLY if drawn < 0.85 else Answer.NO
    day = TODAY - dt.timedelta(days=generator.randrange(300))
    document = Evidence(
        path=f"evidence/{drawn}.pdf", sha256=f"{generator.getrandbits(256):064x}", effective=day
    )
    documents = (document,) if read_twice or generator.random() < 0.6 else ()
    entry = Entry(
        answer=answer, author="A. Meyer", answered_on=day, evidence=documents, reason=f"{drawn:.3f}"
    )
    if not (read_twice or (documents and generator.random() < 0.2)):
        return entry
    second = SecondPerson(name="B. Beck", date=day, claim=claim_sha256(control.id, entry))
    return entry.model_copy(update={"second_person": second})


def make_assessment(catalogue: Catalogue, generator: random.Random, *, read_twice: bool) -> Assessment:
    """One clinic's 283 answers."""
    entries = {c.id: make_entry(c, generator, read_twice=read_twice) for c in catalogue.controls.values()}
    return Assessment(
        id=f"{generator.getrandbits(128):032x}",
        clinic=f"Clinic {generator.randrange(10**6)}",
        profile=catalogue.profile,
        catalogue=CatalogueRef(version=catalogue.version, sha256=catalogue.sha256),
        created=dt.datetime(2026, 11, 24, tzinfo=dt.UTC),
        entries=entries,
    )


def batches(
    catalogue: Catalogue, count: int, *, read_twice: bool, seed: int = 1
) -> Iterator[list[Assessment]]:
    """All assessments, some at a time: ten thousand at once would need gigabytes."""
    generator = random.Random(seed)
    for begin in range(0, count, BATCH):
        size = min(BATCH, count - begin)
        yield [make_assessment(catalogue, generator, read_twice=read_twice) for _ in range(size)]


def timed(name: str, groups: Iterator[list[Item]], work: Callable[[Item], object]) -> Timing:
    """Time `work` on each item, and nothing else."""
    count, wall, cpu = 0, 0.0, 0.0
    for group in groups:
        begin_wall, begin_cpu = time.perf_counter(), time.process_time()
        for item in group:
            work(item)
        wall += time.perf_counter() - begin_wall
        cpu += time.process_time() - begin_cpu
        count += len(group)
    return Timing(name, count, wall, cpu)


def time_scoring(count: int) -> list[Timing]:
    """Sections 1 to 3."""
    catalogue = load_catalogue("combined")

    def one(assessment: Assessment) -> object:
        return score(assessment, catalogue, on=TODAY)

    def texts() -> Iterator[list[bytes]]:
        for group in batches(catalogue, count // 10, read_twice=False):
            yield [a.model_dump_json(by_alias=True, exclude_defaults=True).encode() for a in group]

    return [
        timed("score", batches(catalogue, count, read_twice=False), one),
        timed("score, all read twice", batches(catalogue, count // 10, read_twice=True), one),
        timed("read", texts(), lambda text: parse_assessment(text, source="benchmark")),
        timed("json.loads, yardstick", texts(), json.loads),
        time_import(catalogue, count // 10, 1),
        time_imports(count // 10),
    ]


def time_import(catalogue: Catalogue, count: int, seed: int) -> Timing:
    """Reading and scoring, one assessment after the other."""
    group = [
        a.model_dump_json(by_alias=True, exclude_defaults=True).encode()
        for g in batches(catalogue, count, read_twice=False, seed=seed)
        for a in g
    ]

    def one(text: bytes) -> object:
        return score(parse_assessment(text, source="benchmark"), catalogue, on=TODAY)

    return timed("read and score", iter([group]), one)


def time_share(seed: int, count: int) -> Timing:
    """One process's share."""
    return time_import(load_catalogue("combined"), count, seed)


def time_imports(count: int) -> Timing:
    """Reading and scoring on all cores."""
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers) as pool:
        shares = list(pool.map(time_share, range(workers), [count // workers] * workers))
    return Timing(
        f"in {workers} processes",
        sum(s.count for s in shares),
        max(s.wall_s for s in shares),
        sum(s.cpu_s for s in shares),
    )


def time_answers() -> Timing:
    """Section 4, over a whole sitting, since the state file grows."""
    with tempfile.TemporaryDirectory() as folder:
        space = Workspace.create(Path(folder) / "clinic", clinic="Clinic", author="A. Meyer")
        controls = [list(space.catalogue.controls)]
        return timed("answer", iter(controls), lambda i: space.answer(i, Answer.PARTLY, author="A. Meyer"))


def fastest(command: list[str], times: int = 15) -> float:
    """Seconds, the best of some runs: other work on the machine can only add to it."""
    best = float("inf")
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        best = min(best, time.perf_counter() - begin)
    return best


def start_up() -> dict[str, float]:
    """Section 5."""
    empty = fastest([sys.executable, "-c", "pass"])
    typer = fastest([sys.executable, "-c", "import typer"])
    helped = fastest([sys.executable, "-m", "fedvox_compliance", "--help"])
    return {
        "empty_s": empty,
        "typer_s": typer,
        "help_s": helped,
        "help_to_empty": helped / empty,
        "help_to_typer": helped / typer,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--assessments", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    timings = [*time_scoring(options.assessments), time_answers()]
    for t in timings:
        print(
            f"{t.name:24} {t.count:6d}  wall {t.wall_s:7.2f} s  cpu {t.cpu_s:7.2f} s  {t.per_item_ms:7.3f} ms each"
        )
    started = start_up()
    print("start-up                 " + "  ".join(f"{k} {v:.3f}" for k, v in started.items()))
    if options.json:
        found = {"timings": [asdict(t) for t in timings], "start_up": started}
        options.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
