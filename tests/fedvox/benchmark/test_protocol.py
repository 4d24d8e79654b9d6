"""The whole benchmark on disk: planted winner, missing-case cheat, unfair claims, commands that see no reference."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html.parser import HTMLParser

import nibabel as nib
import pandas as pd
import pytest

from fedvox.benchmark import evaluate as evaluate_module
from fedvox.benchmark.manifest import load_benchmark
from fedvox.benchmark.protocol import run_benchmark
from fedvox.benchmark.sandbox import landlock_version
from fedvox.benchmark.submission import load_submission
from fedvox.errors import ConfigError, DataError
from fedvox.evaluation.metrics import measure


def run(site, *homes, output=None, **options):
    submissions = [load_submission(home) for home in homes]
    return run_benchmark(load_benchmark(site.folder), submissions, output or site.folder / "out", **options)


@pytest.fixture
def field(make_site):
    """Three submissions of known order on eight cases of each of two hospitals."""
    site = make_site(8)
    good = site.submission("good", 0.1, claims=["loss"], compares_to="plain", method={"loss": "new"})
    plain = site.submission("plain", 0.3, role="baseline")
    poor = site.submission("poor", 0.7)
    return site, [good, plain, poor]


@pytest.fixture
def with_replicates(field):
    """The same, with other seeds of the baseline and no images to leak."""
    site, homes = field
    for seed in (1, 2):
        for t in ("inside", "outside"):
            for i, case in enumerate(site.cases[t]):
                site.predict(homes[1] / f"seed{seed}" / t / f"{case}.nii.gz", t, i, 0.3)
    text = (homes[1] / "submission.yaml").read_text()
    text += "replicates: {inside: [seed1/inside, seed2/inside], outside: [seed1/outside, seed2/outside]}\n"
    (homes[1] / "submission.yaml").write_text(text)
    site.change(waivers={f"leakage/{t}": "the images are synthetic and were made here" for t in site.cases})
    return site, homes


def test_a_planted_order_is_found_on_every_test_set(field):
    site, homes = field
    result = run(site, *homes)
    assert [a.test_set.name for a in result.analysis.test_sets] == ["inside", "outside"]
    for analysis in result.analysis.test_sets:
        assert analysis.ranking.order() == ["good", "plain", "poor"]
        assert analysis.pairwise.better[-1].tolist() == [
            [False, True, True],
            [False, False, True],
            [False] * 3,
        ]
    assert result.analysis.agreement[0, 1] == 1


def test_the_ranking_score_is_the_mean_over_structures_of_the_means_over_cases(field):
    site, homes = field
    result = run(site, homes[0])
    frame = pd.read_csv(site.folder / "out" / "submissions" / "good" / "inside" / "scores.csv")
    by_hand = frame.groupby("structure")["dice"].mean().mean()
    assert result.analysis.test_sets[0].ranking.scores[0] == pytest.approx(by_hand)


def test_whoever_leaves_out_hard_cases_is_not_ranked_and_gains_nothing_without_the_gate(field):
    site, homes = field
    cheat = site.submission("cheat", 0.02, skip={"in_03", "in_04"})
    result = run(site, *homes, cheat)
    inside, outside = result.analysis.test_sets
    assert "cheat" not in inside.ranking.methods
    assert "75.0%" in inside.unranked["cheat"]
    assert outside.ranking.winners() == ["cheat"]
    assert not result.may_be_called_better("cheat")
    site.change(min_coverage=0.5)
    relaxed = run(site, *homes, cheat, output=site.folder / "relaxed")
    ranking = relaxed.analysis.test_sets[0].ranking
    assert ranking.order()[0] == "good"
    with_zeros = pd.read_csv(site.folder / "relaxed" / "submissions" / "cheat" / "inside" / "scores.csv")
    assert (with_zeros["dice"] == 0).sum() == 4
    at = ranking.methods.index("cheat")
    assert ranking.scores[at] == pytest.approx(with_zeros.groupby("structure")["dice"].mean().mean())


def test_two_submissions_of_the_same_predictions_tie_and_neither_is_better(field):
    site, homes = field
    twin = site.folder / "submissions" / "twin"
    shutil.copytree(homes[1], twin)
    text = (twin / "submission.yaml").read_text().replace("name: plain", "name: twin")
    (twin / "submission.yaml").write_text(text)
    result = run(site, *homes, twin)
    for analysis in result.analysis.test_sets:
        ranks = dict(zip(analysis.ranking.methods, analysis.ranking.ranks.tolist(), strict=True))
        assert ranks == {"good": 1, "plain": 2, "twin": 2, "poor": 4}
        order = analysis.pairwise.methods
        better = analysis.pairwise.better[-1]
        assert not better[order.index("plain"), order.index("twin")]
        assert not better[order.index("twin"), order.index("plain")]


def test_a_fair_claim_is_called_better_and_an_unfair_one_is_not(with_replicates):
    site, homes = with_replicates
    result = run(site, *homes)
    assert result.is_conclusive("inside"), result.checks_of("inside")
    assert result.may_be_called_better("good"), result.checks_of("good")
    page = (site.folder / "out" / "report.html").read_text()
    assert re.search(r"inside: good is better than plain: \+0\.\d+", page)
    unfair = site.submission(
        "good",
        0.1,
        claims=["loss"],
        compares_to="plain",
        method={"loss": "new", "patch_size": [128, 128, 128]},
    )
    again = run(site, unfair, *homes[1:])
    assert again.analysis.test_sets[0].ranking.winners() == ["good"]
    assert not again.may_be_called_better("good")
    page = (site.folder / "out" / "report.html").read_text()
    assert "is better than" not in page
    assert "may not be called better than plain, because P1 fails" in page


def test_without_replicates_no_ranking_is_conclusive(field):
    site, homes = field
    result = run(site, *homes)
    assert [c.status for c in result.checks if c.id == "P3"] == ["fail", "fail"]
    page = (site.folder / "out" / "report.html").read_text()
    assert "not conclusive" in page
    assert "is better than" not in page


def test_a_test_image_in_the_training_data_is_found_and_named(make_site, nifti):
    site = make_site(images=True)
    training = site.folder / "train"
    training.mkdir()
    shutil.copy(site.folder / "inside" / "images" / "in_02_0000.nii.gz", training / "other_name_0000.nii.gz")
    site.change(training={"images": "train"})
    result = run(site, site.submission("m", 0.2))
    checks = {c.subject: c for c in result.checks if c.id == "leakage"}
    assert checks["inside"].status == "fail"
    assert checks["inside"].details[0].startswith("in_02 is like other_name (exact")
    assert checks["outside"].status == "pass"


def test_subgroups_and_the_gap_to_the_other_hospital_are_reported(field):
    site, homes = field
    result = run(site, *homes)
    inside = result.analysis.test_sets[0]
    assert [g.attribute for g in inside.subgroups] == ["sex", "age"]
    assert inside.subgroups[0].num_patients.tolist() == [4, 4]
    assert inside.subgroups[1].groups == ("<33", "≥33")
    gaps = {g.method: g for g in result.analysis.gaps["outside"]}
    means = [a.tables["dice"].case_means()[0].mean() for a in result.analysis.test_sets]
    assert gaps["good"].difference == pytest.approx(means[0] - means[1])


def test_a_second_run_scores_nothing_again_and_gives_the_same_files(field, monkeypatch):
    site, homes = field
    run(site, *homes)
    before = {p: p.read_bytes() for p in (site.folder / "out").rglob("*.json")}
    pages = {p: p.read_bytes() for p in (site.folder / "out" / "site").rglob("*.html")}

    def refuse(*_):
        raise AssertionError("scored again")

    monkeypatch.setattr(evaluate_module, "score_case", refuse)
    run(site, *homes)
    assert {p: p.read_bytes() for p in before} == before
    assert {p: p.read_bytes() for p in pages} == pages


def test_results_are_plain_json_and_pairs_are_a_table(field):
    site, homes = field
    result = run(site, *homes)
    out = site.folder / "out"
    found = json.loads((out / "results.json").read_text())
    assert found["schema"] == "fedvox.benchmark.result/1"
    assert [m["name"] for m in found["test_sets"][0]["methods"]] == ["good", "plain", "poor"]
    assert found["test_sets"][0]["methods"][0]["rank"] == 1
    assert {c["id"] for c in found["checks"]} == {"P1", "P2", "P3", "P4", "leakage"}
    assert len(found["checks"]) == len(result.checks)
    pairs = pd.read_csv(out / "pairwise.csv")
    assert len(pairs) == 2 * 3 * 6  # test sets × scopes × ordered pairs


class _Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.targets, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.targets += [found[a] for a in ("href", "src") if a in found]
        self.ids += [found["id"]] if "id" in found else []


def test_every_link_of_the_site_leads_somewhere_inside_it(field):
    site, homes = field
    run(site, *homes)
    root = site.folder / "out" / "site"
    pages = list(root.rglob("*.html"))
    assert {p.name for p in pages} == {"index.html", "report.html", "good.html", "plain.html", "poor.html"}
    for page in pages:
        links = _Links()
        links.feed(page.read_text())
        for target in links.targets:
            path, _, anchor = target.partition("#")
            assert not re.match(r"\w+:|//", target), target
            aimed = (page.parent / path).resolve() if path else page
            assert aimed.is_file(), f"{page.name}: {target}"
            if anchor:
                there = _Links()
                there.feed(aimed.read_text())
                assert anchor in there.ids, f"{page.name}: {target}"


def test_names_and_words_of_submitters_cannot_inject_html(field):
    site, homes = field
    hostile = site.submission(
        "evil", 0.2, team="<script>alert(1)</script>", method={"loss": "<img src=x onerror=alert(1)>"}
    )
    run(site, *homes, hostile)
    for page in (site.folder / "out" / "site").rglob("*.html"):
        assert "<script>alert" not in page.read_text()
        assert "<img src=x" not in page.read_text()


def test_submissions_must_be_distinct_and_know_the_test_sets(field):
    site, homes = field
    with pytest.raises(ConfigError, match="share the name"):
        run(site, homes[0], homes[0])
    with pytest.raises(ConfigError, match="there is no submission"):
        run(site)
    text = (homes[0] / "submission.yaml").read_text().replace("outside: outside", "elsewhere: outside")
    (homes[0] / "submission.yaml").write_text(text)
    with pytest.raises(ConfigError, match="elsewhere"):
        run(site, *homes)


def test_when_nobody_covers_a_test_set_that_is_said(make_site):
    site = make_site(4)
    with pytest.raises(DataError, match="no submission covers"):
        run(site, site.submission("m", 0.1, skip={"in_00", "out_00"}))


# --- commands -------------------------------------------------------------------------------------------------

PREDICT = """
import sys, pathlib, nibabel as nib, numpy as np
images, output = map(pathlib.Path, sys.argv[1:3])
for path in sorted(images.iterdir()):
    image = nib.load(path)
    values = np.asarray(image.dataobj).astype(float)
    values = values - 500 * (np.median(values) > 250)
    labels = np.clip(np.rint(values / 100), 0, 2).astype("uint8")
    nib.save(nib.Nifti1Image(labels, image.affine), output / path.name.replace("_0000", ""))
"""
SPY = """
import os, pathlib
secret = pathlib.Path({secret!r})
for folder in [secret, *secret.parents]:
    try:
        print("FOUND", folder, [len((folder / name).read_bytes()) for name in os.listdir(folder) if "in_" in name])
    except PermissionError:
        print("refused", folder)
"""


def command_submission(site, name, code):
    home = site.folder.parent / "code" / name
    home.mkdir(parents=True)
    (home / "predict.py").write_text(code)
    (home / "submission.yaml").write_text(
        f"name: {name}\ncommand: [{sys.executable}, '{home}/predict.py', '{{images}}', '{{output}}']\nread_paths: [.]\n"
    )
    return home


@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
def test_a_command_is_run_by_the_third_party_and_finds_no_reference(make_site):
    site = make_site(images=True)
    spy = SPY.format(secret=str(site.folder / "inside" / "labels"))
    home = command_submission(site, "runs", spy + PREDICT)
    result = run(site, home, site.submission("plain", 0.3, role="baseline"), cases_per_shard=4)
    shards = result.runs["runs"]["inside"]
    assert [(s.returncode, s.predicted) for s in shards] == [(0, 4), (0, 2)], shards[0].log
    log = "".join(s.log for found in result.runs["runs"].values() for s in found)
    assert "FOUND" not in log
    assert f"refused {site.folder}" in log
    assert not any(case in log for case in site.cases["inside"])
    assert result.analysis.test_sets[0].coverage["runs"] == 1
    for i, outcome in enumerate(result.evaluations["inside"]["runs"].outcomes):
        predicted = site.folder / "out" / "submissions" / "runs" / "inside" / "run" / "predictions"
        labels = nib.load(predicted / f"{outcome.case}.nii.gz").get_fdata().transpose(2, 1, 0).astype(int)
        expected = measure(site.reference("inside", i) == 1, labels == 1, (3.0, 1.0, 1.0))["dice"]
        found = {row["structure"]: row["dice"] for row in outcome.rows}
        assert found["liver"] == pytest.approx(expected)
    assert "run by the third party in a sandbox" in (site.folder / "out" / "report.html").read_text()


@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
def test_a_command_that_crashes_half_way_is_not_ranked_but_reported(make_site):
    site = make_site(images=True)
    home = command_submission(
        site, "crashes", PREDICT + "    if '_3_' in path.name: raise MemoryError('gone')\n"
    )
    result = run(site, home, site.submission("plain", 0.3), cases_per_shard=1)
    inside = result.analysis.test_sets[0]
    assert inside.ranking.methods == ("plain",) or inside.coverage["crashes"] == 1
    assert sum(s.returncode != 0 for s in result.runs["crashes"]["inside"]) >= 1
    assert "shards failed" in (site.folder / "out" / "report.html").read_text()


@pytest.mark.integration
@pytest.mark.skipif(landlock_version() < 1, reason="this kernel has no Landlock")
def test_over_ray_everything_comes_out_the_same(make_site):
    site = make_site(4, images=True)
    home = command_submission(site, "runs", PREDICT)
    plain = site.submission("plain", 0.3)
    here = run(site, home, plain, output=site.folder / "here", cases_per_shard=2)
    there = run(site, home, plain, output=site.folder / "there", cases_per_shard=2, workers=2, memory_gib=0.2)
    for test_set, found in here.evaluations.items():
        for name, evaluation in found.items():
            pd.testing.assert_frame_equal(there.evaluations[test_set][name].frame(), evaluation.frame())
    assert there.analysis.test_sets[0].ranking.order() == here.analysis.test_sets[0].ranking.order()
