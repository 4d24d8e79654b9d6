"""Configuration files: YAML + dotted overrides -> a typed, frozen model.

    fedvox pretrain --config demo.yaml --set optimizer.lr=3e-4 --set compute.num_workers=2

A configuration is a pydantic model whose fields carry the only defaults there are. Unknown keys are refused
with the nearest known name, wrong types with the dotted path of the field, and all problems are told at once.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from fedvox.errors import ConfigError


class Config(BaseModel):
    """Base of every configuration: frozen, and closed against unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


C = TypeVar("C", bound=Config)


def load_config(model: type[C], path: Path | str | None, overrides: Iterable[str] = ()) -> C:
    """Reads a YAML file, applies `a.b=value` overrides and validates the whole.

    Args:
        model: the configuration's type.
        path: a YAML file, or None to start from the defaults.
        overrides: `dotted.path=value`; the value is read as YAML (`3`, `1e-3`, `[1, 2]`, `null`, text).

    Raises:
        ConfigError: the file is missing, is not YAML, has unknown keys or values of a wrong type.
    """
    values = _read_yaml(Path(path)) if path is not None else {}
    for override in overrides:
        _apply_override(values, override)
    return validate(model, values, source=str(path) if path is not None else "the defaults")


def validate(model: type[C], values: Mapping[str, Any], *, source: str) -> C:
    """Turns plain values into the typed configuration; `source` names them in error messages."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problems = [_explain(model, problem) for problem in error.errors()]
        raise ConfigError(
            f"{source}: " + ("; ".join(problems)),
            "Correct the named fields; `--dry-run` prints the resolved configuration with every default.",
        ) from error


def to_yaml(config: Config) -> str:
    """The resolved configuration, every default included, as YAML that `load_config` reads back."""
    return str(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True))


_LARGEST_YAML = 100_000  # values of a file, with every alias written out
_TOO_LARGE = "its aliases stand for too many values"


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-3` as text; people who write learning rates mean a number.

    A few lines of aliases of aliases can stand for more values than any memory holds, and whoever prints or checks
    them writes them out. So they are counted while they are read.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """As in PyYAML, with an end."""
        if self.check_event(yaml.AliasEvent):
            meant = self.anchors.get(self.peek_event().anchor)  # type: ignore[no-untyped-call]
            if meant is not None and id(meant) not in self._sizes:  # what it is itself a part of
                raise yaml.YAMLError(_TOO_LARGE)
        node = super().compose_node(parent, index)
        if node is not None and id(node) not in self._sizes:
            self._sizes[id(node)] = 1 + sum(self._sizes[id(below)] for below in _below(node))
            if self._sizes[id(node)] > _LARGEST_YAML:
                raise yaml.YAMLError(_TOO_LARGE)
        return node


def _below(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def parse_scalar(text: str) -> Any:
    """One YAML value, as written on a command line or in a file of a stranger.

    Raises:
        yaml.YAMLError: it is no YAML, or nested or repeated beyond all use.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse_scalar(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
        hint = f"Files there: {', '.join(known)}." if known else "Give an existing YAML file."
        raise ConfigError(f"configuration file {path} does not exist", hint) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} is not valid YAML: {' '.join(str(error).split())}", "Mend its syntax."
        ) from None
    except OSError as error:  # a folder, or not ours to read
        raise ConfigError(
            f"configuration file {path} cannot be read: {error.strerror}",
            "Give a YAML file that you may read.",
        ) from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path} holds {type(values).__name__}, not a mapping of fields", "Write `field: value` lines."
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not separator or not all(keys):
        raise ConfigError(
            f"override {override!r} is not of the form a.b=value", "For example: --set optimizer.lr=3e-4"
        )
    node = values
    for key in keys[:-1]:
        if node.get(key) is None:  # `data:` with nothing below it
            node[key] = {}
        child = node[key]
        if not isinstance(child, dict):
            raise ConfigError(
                f"override {override!r}: {key} is a value, not a group of fields", "Shorten the path."
            )
        node = child
    try:
        node[keys[-1]] = parse_scalar(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: value is not valid YAML", "Quote it.") from error


def _explain(model: type[BaseModel], problem: Any) -> str:
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join(path) or "configuration"
    if problem["type"] == "extra_forbidden":
        known = _known_fields(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"unknown key {dotted!r} ({hint})"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{dotted}: {message} (got {problem['input']!r})"


def _known_fields(model: type[BaseModel], path: list[str]) -> list[str]:
    for key in path:
        nested = _model_of(model.model_fields[key].annotation) if key in model.model_fields else None
        if nested is None:
            return []
        model = nested
    return list(model.model_fields)


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if get_origin(annotation) in (Union, UnionType):
        return next((found for arg in get_args(annotation) if (found := _model_of(arg))), None)
    return None
