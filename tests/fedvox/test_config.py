from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedvox.backbone_benchmark.config import BackboneBenchmarkConfig
from fedvox.config import Config, load_config, parse_scalar, to_yaml
from fedvox.curation.cycle.config import CurateConfig
from fedvox.errors import ConfigError
from fedvox.forecasting.config import ForecastConfig
from fedvox.restoration.config import DiffusionPriorConfig
from fedvox.tracking.config import LesionConfig
from fedvox.training.config import PretrainConfig, expand
from fedvox.training.finetune_config import FinetuneConfig
from fedvox_federation.config import FederationConfig


class Inner(Config):
    size: tuple[int, int] = (1, 2)


class Outer(Config):
    rate: float = 0.1
    inner: Inner = Inner()
    maybe: Inner | None = None


def test_overrides_reach_into_nested_sections_and_win_over_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text("rate: 0.5\ninner: {size: [3, 4]}\n")
    found = load_config(Outer, tmp_path / "a.yaml", ["inner.size=[5, 6]", "maybe.size=[7, 8]"])
    assert (found.rate, found.inner.size, found.maybe) == (0.5, (5, 6), Inner(size=(7, 8)))


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "0.001", "1.0e-3"])
def test_scientific_notation_is_a_number(text):
    assert parse_scalar(text) == pytest.approx(0.001)
    assert isinstance(parse_scalar(text), float)


@given(st.floats(min_value=1e-12, max_value=1e12, allow_nan=False))
def test_every_float_that_python_prints_is_read_back(value):
    assert parse_scalar(repr(value)) == value


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("optimizer.learning_rate=1", "unknown key 'optimizer.learning_rate'"),
        ("optimzer.lr=1", "did you mean 'optimizer'"),
        ("compute.num_worker=1", "did you mean 'num_workers'"),
        ("steps=many", "steps: "),
        ("data.patch_size=[1, 2]", "data.patch_size"),
        ("steps", "not of the form"),
        ("steps.deep=1", "steps"),
        ("data.cache.budget=1", "did you mean 'budget_gib'"),
        ("optimizer.warmup_steps=999999", "must be smaller than steps"),
        ("compute.num_workers=8", "every worker needs a sample"),
    ],
)
def test_a_wrong_override_names_the_field_and_the_nearest_known_one(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, None, [override])
    assert words in str(caught.value)
    assert caught.value.exit_code == 2


def test_all_problems_are_told_at_once(tmp_path):
    (tmp_path / "bad.yaml").write_text("steps: no\nseed: -1\nfoo: 1\n")
    with pytest.raises(ConfigError) as caught:
        load_config(PretrainConfig, tmp_path / "bad.yaml")
    assert all(word in str(caught.value) for word in ("steps", "seed", "foo", "bad.yaml"))


@pytest.mark.parametrize("content", ["[1, 2]", "a: [", "just text", "\x00"])
def test_a_file_that_is_no_mapping_is_one_clear_error(tmp_path, content):
    (tmp_path / "bad.yaml").write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.yaml"):
        load_config(PretrainConfig, tmp_path / "bad.yaml")


def test_a_missing_file_lists_the_files_there(tmp_path):
    (tmp_path / "demo.yaml").touch()
    with pytest.raises(ConfigError, match=r"demo\.yaml"):
        load_config(PretrainConfig, tmp_path / "dmo.yaml")


def test_a_folder_in_the_place_of_a_file_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(PretrainConfig, tmp_path)


def test_a_section_with_nothing_below_it_takes_overrides(tmp_path):
    (tmp_path / "a.yaml").write_text("data:\n")
    assert load_config(PretrainConfig, tmp_path / "a.yaml", ["data.store=/s"]).data.store == "/s"


def test_the_resolved_configuration_reads_back_as_itself(tmp_path):
    found = load_config(
        PretrainConfig, None, ["optimizer.lr=3e-4", "compute.num_workers=[1, 2]", "data.cache={}"]
    )
    (tmp_path / "resolved.yaml").write_text(to_yaml(found))
    assert load_config(PretrainConfig, tmp_path / "resolved.yaml") == found


def test_a_configuration_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        PretrainConfig().steps = 3


def test_home_and_variables_are_expanded_with_a_default_home(monkeypatch):
    monkeypatch.delenv("FEDVOX_HOME", raising=False)
    assert expand("$FEDVOX_HOME/runs") == str(Path("~/.fedvox/runs").expanduser())
    monkeypatch.setenv("BUCKET", "b")
    assert expand("s3://$BUCKET/runs") == "s3://b/runs"


CONFIGS = sorted((Path(__file__).resolve().parents[2] / "jobs" / "configs").glob("*.yaml"))
KINDS = {
    "finetune": FinetuneConfig,
    "benchmark_backbones": BackboneBenchmarkConfig,
    "curate": CurateConfig,
    "federation": FederationConfig,
    "forecast": ForecastConfig,
    "diffusion_prior": DiffusionPriorConfig,
    "lesion": LesionConfig,
}
"""How the file's name begins -> what it configures; everything else is a pretraining run."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_in_the_repository_is_valid(path):
    kind = next((kind for name, kind in KINDS.items() if path.stem.startswith(name)), PretrainConfig)
    assert load_config(kind, path) != kind.model_construct()
