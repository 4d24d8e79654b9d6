"""Forecasts of patients on disk: what lands in the folder, memory by tiles, fallbacks, the command."""

import json
import subprocess
import sys
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from fedvox.errors import CheckpointError, ConfigError, DataError
from fedvox.forecasting.config import FlowSection, NetworkSection, SolverSection
from fedvox.forecasting.flow import Forecaster
from fedvox.forecasting.loaders import load_sequence
from fedvox.forecasting.normalization import Normalization
from fedvox.forecasting.predict import Model, Tiling, forecast
from fedvox.forecasting.release import build_network, flow_of, load_release
from fedvox.forecasting.trust import Trust
from fedvox.storage import locate


def fresh_model(trained, unit="days", aggregate="last"):
    """The trained model without its training: exactly no change, whatever the tiles."""
    _, info = load_release(str(trained))
    network = build_network(flow_of(info), NetworkSection(widths=(8, 16), embedding=8), 1).eval()
    return Model(network, replace(info, unit=unit, horizon=60.0), SolverSection(aggregate=aggregate))


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_tiles_join_without_a_seam_and_odd_sizes_come_back(trained, patient, overlap):
    sequence = load_sequence(patient(shape=(11, 10, 13)))
    found = forecast(sequence, 120.0, fresh_model(trained), tiling=Tiling((8, 8, 8), overlap))
    assert found.volume.shape == (1, 13, 10, 11)
    assert np.allclose(found.volume, sequence.volumes[-1], atol=1e-3)
    assert any("beyond 60" in note for note in found.notes)


def test_one_scan_only_falls_back_to_that_scan_and_says_so(trained, patient):
    sequence = load_sequence(patient(days=(0,)))
    found = forecast(sequence, 10.0, fresh_model(trained))
    assert np.array_equal(found.volume, sequence.volumes[0])
    assert found.method == "lci"
    assert "one scan only" in found.notes[0]


def test_scans_of_the_future_are_not_looked_at(trained, patient):
    sequence = load_sequence(patient())
    found = forecast(sequence, 60.0, "lci")
    assert np.array_equal(found.volume, sequence.volumes[1])
    assert "1 scan(s) from 60 days on were not used" in found.notes[0]
    with pytest.raises(DataError, match="none from before"):
        forecast(sequence, -1.0, "lci")


def test_linear_extrapolation_is_in_the_units_of_the_scans(patient):
    sequence = load_sequence(patient(days=(0, 1, 2)))
    found = forecast(sequence, 3.0, "linear")
    inside = (sequence.volumes[0] > 10) & (sequence.volumes[0] < 90)
    assert np.allclose(found.volume[inside], sequence.volumes[2][inside] + 1, atol=0.05)


def test_baselines_leave_voxels_as_bright_as_they_are(patient):
    sequence = load_sequence(patient(days=(0, 1, 2)))
    sequence.volumes[:, 0, 0, 0, 0] = 5000  # brighter than any percentile, and unchanging
    for name in ("linear", "spline", "mean"):
        assert forecast(sequence, 3.0, name).volume[0, 0, 0, 0] == pytest.approx(5000, rel=1e-4)


def shaken(trained, **changes):
    """The trained model's network with weights that make it see change, and another description."""
    network, info = load_release(str(trained))
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    info = replace(info, unit="days", intensities=(0.0, 1.0), **changes)
    return Model(network, info, SolverSection())


def test_scans_come_to_the_model_in_the_intensities_of_its_training(trained):
    from fedvox.forecasting.sequence import Sequence4D
    from fedvox.forecasting.simulation import SIMULATIONS, Schedule, Simulated

    _, info = load_release(str(trained))
    found = Simulated(SIMULATIONS["heart"], Schedule(missing=0.0), size=8).examples(range(30, 50))
    off = {"as simulated": [], "percentiles alone": []}
    for scans in found.scans:
        files = 1000 * scans.numpy() - 300  # as some scanner would write them
        plain = Normalization.of(files)
        off["percentiles alone"].append(np.abs(plain.apply(files) - scans.numpy()).mean())
        mapped = plain.onto(info.intensities)
        off["as simulated"].append(np.abs(mapped.apply(files) - scans.numpy()).mean())
        assert np.allclose(mapped.undo(mapped.apply(files)), files, atol=0.01)
    assert np.mean(off["as simulated"]) < 0.35 * np.mean(off["percentiles alone"])
    model = replace(shaken(trained), info=info)
    sequence = Sequence4D("p", files, found.times[-1].numpy().astype(float), "cycle", np.ones(4, bool))
    study = Forecaster(model.network, flow_of(info), model.solver, info.trust)
    given = torch.from_numpy(mapped.apply(files))[None], found.times[-1:], torch.ones(1, 4, dtype=torch.bool)
    expected = mapped.undo(study(*given, torch.tensor([0.9]))[0].numpy())
    assert np.allclose(forecast(sequence, 0.9, model).volume, expected, rtol=1e-4, atol=0.1)


@pytest.mark.parametrize("past_only", [True, False])
def test_trust_is_that_of_the_study(trained, patient, past_only):
    model = shaken(trained)
    model.network.velocity_scale.fill_(50)  # so that it sees too much change
    sequence = load_sequence(patient(shape=(8, 8, 8), days=(0, 30, 70)))
    normalization = Normalization.of(sequence.volumes)
    scans = torch.from_numpy(normalization.apply(sequence.volumes))[None]
    times, there = torch.tensor([[0.0, 30.0, 70.0]]), torch.ones(1, 3, dtype=torch.bool)
    study = Forecaster(model.network, flow_of(model.info), model.solver)
    told = study.evidence(scans, times, there, past_only=past_only)
    study.trust = Trust(float(told.predicted), past_only)
    weight = study.weight(scans, times, there)
    found = forecast(sequence, 100.0, replace(model, info=replace(model.info, trust=study.trust)))
    assert found.trust == pytest.approx(float(weight), rel=1e-5)
    assert 0 < found.trust < 1
    expected = normalization.undo(study(scans, times, there, torch.tensor([100.0]))[0].numpy())
    assert np.allclose(found.volume, expected, rtol=1e-4, atol=1e-2)


def test_a_scan_that_a_plan_leaves_out_is_a_missing_visit(trained, patient):
    from fedvox.forecasting.evaluate import scored
    from fedvox.forecasting.metrics import mean_squared_error
    from fedvox.forecasting.protocol import PlannedForecast

    model = shaken(trained)
    assert model.info.flow["method"] == "cronos"
    tfm = model.info.flow | {"method": "tfm"}
    model = replace(model, network=build_network(FlowSection(**tfm), NetworkSection(widths=(8, 16), embedding=8), 1),
                    info=replace(model.info, flow=tfm, trust=None))  # fmt: skip
    for parameter in model.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    sequence = load_sequence(patient(shape=(8, 8, 8), days=(0, 30, 70, 90)))
    one = PlannedForecast("p01", 3, (0, 2), (0.0, 70.0, 90.0))
    normal = torch.from_numpy(Normalization.of(sequence.volumes[[0, 2]]).apply(sequence.volumes))
    valid = torch.tensor([[True, False, True]])
    study = Forecaster(model.network, FlowSection(**tfm), model.solver)
    expected = study(normal[None, :3], torch.tensor([[0.0, 30.0, 70.0]]), valid, torch.tensor([90.0]))
    error = float(mean_squared_error(expected, normal[3:]))
    assert scored(sequence, one, model)["mse"] == pytest.approx(error, rel=1e-4)


def test_a_volume_in_tiles_has_one_trust_between_those_of_its_tiles(trained, patient):
    model = shaken(trained, trust=Trust(1e-2, past_only=False))
    sequence = load_sequence(patient(shape=(16, 8, 8)))
    normal = torch.from_numpy(Normalization.of(sequence.volumes).apply(sequence.volumes))[None]
    given = torch.tensor(sequence.times[None], dtype=torch.float32), torch.ones(1, 3, dtype=torch.bool)
    study = Forecaster(model.network, flow_of(model.info), model.solver, model.info.trust)
    each = [float(study.weight(normal[..., part], *given)) for part in (slice(8), slice(8, 16))]
    found = forecast(sequence, 120.0, model, tiling=Tiling((8, 8, 8), 0.0)).trust
    assert min(each) <= found <= max(each)


def test_draws_that_would_say_nothing_are_refused(trained, patient):
    sequence, model = load_sequence(patient()), shaken(trained)
    silent = replace(model, info=replace(model.info, flow=model.info.flow | {"sigma": 0.0}))
    direct = replace(model, info=replace(model.info, flow=model.info.flow | {"objective": "regression"}))
    for one, draws, told in (
        (model, 1, "one draw"), (silent, 4, "without noise"), (direct, 4, "regression"), ("mean", 4, "baseline mean"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            forecast(sequence, 120.0, one, draws=draws)


def test_tiles_without_voxels_are_refused(trained, patient):
    with pytest.raises(ConfigError, match="empty edge"):
        forecast(load_sequence(patient()), 120.0, fresh_model(trained), tiling=Tiling((0, 8, 8)))


def test_a_folder_keeps_nothing_of_an_earlier_forecast(trained, patient, tmp_path):
    from fedvox.forecasting.output import write_forecast

    sequence, model = load_sequence(patient()), shaken(trained)
    write_forecast(forecast(sequence, 120.0, model, draws=2), tmp_path / "out", {})
    assert (tmp_path / "out" / "uncertainty.nii.gz").is_file()
    write_forecast(forecast(sequence, 120.0, model), tmp_path / "out", {})
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "forecast.nii.gz", "forecast.json", "forecast.gif", "difference.png",
    }  # fmt: skip


@pytest.mark.parametrize(
    "content", ["null", "[]", "{", '{"schema": "fedvox.forecast/1"}', '{"schema": "other"}']
)
def test_a_description_that_is_none_is_refused(tmp_path, content):
    (tmp_path / "model.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model\.json"):
        load_release(str(tmp_path))


def test_a_model_for_another_kind_of_time_is_refused(trained, patient):
    with pytest.raises(DataError, match="cannot be given"):
        forecast(load_sequence(patient()), 100.0, fresh_model(trained, unit="cycle"))


def run(*arguments):
    command = [sys.executable, "-c", "from fedvox.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_command_writes_every_result_on_the_grid_of_the_scans(trained, save_nifti, tmp_path):
    rng = np.random.default_rng(0)
    frames = rng.random((8, 10, 12, 5)) * 200
    turned = np.array([[-2.0, 0, 0, 5], [0, 3, 0, -7], [0, 0, 4, 1], [0, 0, 0, 1]])
    file = save_nifti(tmp_path / "heart_4d.nii.gz", frames, affine=turned)
    done = run("forecast", "-i", file, "--unit", "cycle", "--time", "0.9", "-m", trained, "-o", tmp_path / "out",
               "--uncertainty", "2", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == "fedvox.forecast.result/1"
    assert len(told["context"]) == 5
    image = nib.load(tmp_path / "out" / "forecast.nii.gz")
    assert image.shape == (8, 10, 12)
    assert np.allclose(image.affine, turned)
    assert np.abs(image.get_fdata() - frames[..., -1]).mean() < 80
    assert nib.load(tmp_path / "out" / "uncertainty.nii.gz").get_fdata().min() >= 0
    with Image.open(tmp_path / "out" / "forecast.gif") as gif:
        assert gif.n_frames == 6
    assert (tmp_path / "out" / "difference.png").stat().st_size > 5000
    side_car = json.loads((tmp_path / "out" / "forecast.json").read_text())
    assert side_car["model"]["sha256"]


def test_the_command_tells_wrong_input_in_one_line(patient, tmp_path):
    done = run(
        "forecast", "-i", patient(days=(0, 30, 30)), "--time", "90", "--baseline", "lci", "-o", tmp_path
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "same time" in done.stderr


def test_help_imports_neither_torch_nor_ray():
    code = "import sys; from fedvox.commands.forecast import forecast; print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_cohort_is_scored_by_a_plan_that_stays(patient, tmp_path):
    from fedvox.forecasting.evaluate import evaluate_cohort, table

    for name in ("a", "b", "c"):
        patient(name=name, days=(0, 20, 45))
    first = evaluate_cohort(tmp_path / "cohort", "linear", tmp_path / "scores")
    assert first["methods"]["lci"]["mse_relative_to_lci"]["value"] == pytest.approx(1.0)
    plan = (tmp_path / "scores" / "plan.json").read_text()
    again = evaluate_cohort(tmp_path / "cohort", "linear", tmp_path / "scores", seed=9)
    assert (tmp_path / "scores" / "plan.json").read_text() == plan
    assert again == first
    assert first["of_one_scan"] == 0
    lci = first["methods"]["lci"]["relative_to_lci"]
    assert lci["nrmse"]["value"] == pytest.approx(1.0)
    assert lci["ssim"]["value"] == pytest.approx(0.0)
    assert "MSE relative to LCI" in table(first)


def test_training_options_without_data_are_refused():
    from fedvox.commands.forecast import forecast as command

    with pytest.raises(ConfigError):
        command()


def test_a_plan_for_scans_that_have_gone_is_refused(patient, tmp_path):
    from fedvox.forecasting.evaluate import evaluate_cohort

    for name in ("a", "b"):
        patient(name=name, days=(0, 20, 45))
    evaluate_cohort(tmp_path / "cohort", "lci", tmp_path / "scores")
    patient(name="a", days=(0, 20))
    with pytest.raises(DataError, match=r"plan\.json names patients or scans that are not there: a"):
        evaluate_cohort(tmp_path / "cohort", "lci", tmp_path / "scores")


def test_a_plan_for_other_scans_is_refused_and_so_are_two_patients_of_one_name(patient, tmp_path):
    from fedvox.forecasting.evaluate import evaluate_cohort, planned_cohort

    patient(name="a", days=(0, 20, 45))
    output = locate(str(tmp_path / "scores"))
    _, planned = planned_cohort(tmp_path / "cohort", output)
    assert not (tmp_path / "scores").exists()
    evaluate_cohort(tmp_path / "cohort", "lci", tmp_path / "scores")
    assert planned_cohort(tmp_path / "cohort", output, seed=5)[1] == planned
    patient(
        name="a", days=(-9, 0, 20, 45)
    )  # a scan before them came to light: the numbers of scans mean others now
    with pytest.raises(DataError, match=r"plan\.json names patients or scans that are not there: a"):
        evaluate_cohort(tmp_path / "cohort", "lci", tmp_path / "scores")
    for folder in ("b", "c"):
        found = patient(name=folder, table="json")
        (found / "series.json").write_text(
            (found / "series.json").read_text().replace(f'"{folder}"', '"twin"')
        )
    with pytest.raises(DataError, match="another patient 'twin'"):
        planned_cohort(tmp_path / "cohort", locate(str(tmp_path / "new")))


def test_a_region_that_only_some_patients_have_is_scored_for_these(patient, save_nifti, tmp_path):
    from fedvox.forecasting.evaluate import evaluate_cohort

    patient(name="a", days=(0, 20, 45))
    folder = patient(name="b", days=(0, 20, 45), roi=["roi.nii.gz"] * 3)
    save_nifti(folder / "roi.nii.gz", np.ones((8, 10, 12)))
    found = evaluate_cohort(tmp_path / "cohort", "mean", tmp_path / "scores")["methods"]["mean"]
    assert found["mean"]["roi_ssim"] < 1
    assert found["relative_to_lci"]["roi_mse"]["value"] > 0


@pytest.mark.parametrize(
    "options", [{"time": "3"}, {"uncertainty": 4}, {"input_": "somebody"}, {"model": "runs/x"}]
)
def test_what_does_not_go_with_an_evaluation_is_refused(options):
    from fedvox.commands.forecast import forecast as command

    with pytest.raises(ConfigError):
        command(evaluate="cohort", baseline="lci", output="out", **options)


def test_a_dry_run_of_an_evaluation_writes_nothing(patient, tmp_path, capsys):
    from fedvox.commands.forecast import forecast as command

    patient(name="a", days=(0, 20, 45))
    command(evaluate=tmp_path / "cohort", baseline="lci", output=tmp_path / "scores", dry_run=True, set_=None)
    assert capsys.readouterr().out == "a: the scan at 45 from those at 0, 20\n"
    assert not (tmp_path / "scores").exists()


def test_the_gain_over_lci_is_tested_as_scipy_does():
    from scipy import stats

    from fedvox.forecasting.evaluate import _better_than_lci

    rng = np.random.default_rng(0)
    errors = {"a": rng.random(12), "b": rng.random(12) + 0.3, "lci": rng.random(12) + 0.4}
    rows = [
        {"patient": f"p{n}", "method": method, "mse": value}
        for method, values in errors.items()
        for n, value in enumerate(values)
    ]
    alone = [
        stats.wilcoxon(errors["lci"] - errors[m], alternative="greater", method="exact").pvalue for m in "ab"
    ]
    assert _better_than_lci(rows, ["a", "b"]) == pytest.approx([min(1, 2 * alone[0]), alone[1]], rel=1e-6)
