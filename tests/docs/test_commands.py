"""Every command in every page exists, with every option that the page gives it, and names files that are there."""

import importlib
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import click
import pytest
import typer

import fedvox.cli
import fedvox_compliance.cli
import fedvox_federation.cli
import fedvox_federation.cli_simulation

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SHELLS = {"bash", "sh", "console", "shell"}
OPERATORS = {"&&", "||", ";", "|", "&"}
PREFIXES = {"nice", "nohup", "time", "sudo", "exec"}


@dataclass(frozen=True)
class Command:
    """One command of a page."""

    page: str
    line: int
    words: tuple[str, ...]

    def __str__(self):
        return f"{self.page}:{self.line}: {' '.join(self.words)}"


def blocks(text):
    """(language, first line's number, lines) of each fenced block."""
    language, start, held = None, 0, []
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```(\w*)", line)
        if fence is None:
            held.append(line)
        elif language is None:
            language, start, held = fence[1] or "none", number + 1, []
        else:
            yield language, start, held
            language = None


def logical_lines(language, start, lines):
    """Commands as typed: prompts and output left out in a console, continued lines joined."""
    pending, begun = "", start
    for number, line in enumerate(lines, start):
        if not pending:
            if language == "console":
                if not line.lstrip().startswith("$ "):
                    continue
                line = line.lstrip()[2:]
            begun = number
        pending += line.strip()
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        yield begun, pending
        pending = ""


INLINE = re.compile(r"`((?:fedvox(?:-compliance|-federation)?|flower-simulation|make|python) [^`]+)`")


def inline_commands(page):
    """Commands between backticks in running text and tables."""
    text = re.sub(
        r"^\s*```.*?^\s*```", lambda m: "\n" * m[0].count("\n"), page.read_text(), flags=re.M | re.S
    )
    for found in INLINE.finditer(text):
        words = found[1].replace("…", " ").replace("\\", " ").split()
        yield Command(str(page.relative_to(ROOT)), text[: found.start()].count("\n") + 1, tuple(words))


def commands_of(page):
    name = str(page.relative_to(ROOT))
    yield from inline_commands(page)
    for language, start, lines in blocks(page.read_text()):
        if language in SHELLS:
            for number, text in logical_lines(language, start, lines):
                lexer = shlex.shlex(text, posix=True, punctuation_chars="&|;")
                lexer.whitespace_split, lexer.commenters = True, "#"
                part = []
                for word in [*lexer, ";"]:
                    if word not in OPERATORS:
                        part.append(word)
                        continue
                    while part and (part[0] in PREFIXES or re.fullmatch(r"[A-Z_]+=.*", part[0])):
                        part.pop(0)
                    if part:
                        yield Command(name, number, tuple(part))
                    part = []


COMMANDS = [command for page in PAGES for command in commands_of(page)]


@cache
def job(path):
    """The command behind a script in jobs/."""
    found = re.search(r"^from (fedvox\.commands\.\w+) import (\w+)", (ROOT / path).read_text(), re.M)
    return fedvox.cli._single(getattr(importlib.import_module(found[1]), found[2]))


@cache
def program(name):
    if name == "flower-simulation":
        return fedvox.cli._single(fedvox_federation.cli_simulation.flower_simulation)
    package = {
        "fedvox": fedvox,
        "fedvox-compliance": fedvox_compliance,
        "fedvox-federation": fedvox_federation,
    }[name]
    return typer.main.get_command(package.cli.app)


def fault(command, words):
    """What is wrong with the words that a click command is given; None if nothing is."""
    context = click.Context(command, info_name="x")
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        below = command.get_command(context, words[0])
        if below is None:
            return f"there is no command {words[0]!r}"
        command, words = below, words[1:]
    if command.context_settings.get("ignore_unknown_options"):
        return None
    known = {"--help", "--debug", "--version"}
    for parameter in command.params:
        known |= {*parameter.opts, *parameter.secondary_opts}
    given = [word.split("=")[0] for word in words if re.match(r"--?[A-Za-z]", word)]
    unknown = [word for word in given if word not in known and word[:2] not in known and word.isascii()]
    return f"there is no option {unknown[0]!r}" if unknown else None


def check(words):
    """What is wrong with a command; None if nothing is, or if it is not ours."""
    name, rest = Path(words[0]).name, list(words[1:])
    if name in ("ray", "fedvox") and rest[:1] in (["job"], ["submit"]) and "--" in rest:
        return check(tuple(rest[rest.index("--") + 1 :]))
    if name == "sbatch":
        script = next(i for i, word in enumerate(rest) if not word.startswith("-"))
        return missing(rest[script : script + 1]) or check(tuple(rest[script + 1 :]))
    if name in ("fedvox", "fedvox-compliance", "fedvox-federation", "flower-simulation"):
        return fault(program(name), rest)
    if name.startswith("python") and rest:
        return check_python(rest)
    if name == "make":
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
        return next(
            (f"there is no target {word!r}" for word in rest if "=" not in word and word not in targets), None
        )
    return missing(
        word for word in words if word.startswith(("deploy/", "jobs/", "benchmarks/", "examples/"))
    )


def check_python(rest):
    script = rest[0]
    if script == "-m" and rest[1] == "pytest":
        return missing(word.split("::")[0] for word in rest[2:] if word.startswith("tests/"))
    if script == "-m" and rest[1] in ("fedvox", "fedvox_federation", "fedvox_compliance"):
        return fault(program(rest[1].replace("_", "-")), rest[2:])
    if script.startswith("jobs/"):
        return missing([script]) or fault(job(script), rest[1:])
    if script.startswith(("benchmarks/", "examples/")):
        if gone := missing([script]):
            return gone
        source = "".join(file.read_text() for file in (ROOT / script).parent.rglob("*.py"))
        source += "".join(file.read_text() for file in (ROOT / "platform/fedvox").rglob("*.py"))
        unknown = [w for w in rest[1:] if w.startswith("--") and f'"{w.split("=")[0]}"' not in source
                   and w.split("=")[0][2:].replace("-", "_") not in source]  # fmt: skip
        return f"there is no option {unknown[0]!r}" if unknown else None
    return None


def missing(paths):
    return next((f"{path} does not exist" for path in paths if not (ROOT / path).exists()), None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_exists_with_its_options_and_files(page):
    name = str(page.relative_to(ROOT))
    wrong = [f"{c}\n    {why}" for c in COMMANDS if c.page == name and (why := check(c.words))]
    assert not wrong, "\n".join(wrong)


def test_the_pages_are_full_of_commands():
    ours = [
        c
        for c in COMMANDS
        if Path(c.words[0]).name.startswith(("fedvox", "flower-simulation", "python", "make"))
    ]
    assert len(ours) > 150
    assert {"README.md", "docs/pretraining.md", "docs/federation.md", "docs/deploy.md"} <= {
        c.page for c in ours
    }


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("fedvox pretrian --config x", "no command 'pretrian'"),
        ("fedvox pretrain --confg x", "no option '--confg'"),
        ("ray job submit --working-dir . -- python jobs/gone.py", "jobs/gone.py does not exist"),
        ("ray job submit -- python jobs/pretrain.py --dryrun", "no option '--dryrun'"),
        ("fedvox-federation ledger shwo", "no command 'shwo'"),
        ("make pretraining", "no target 'pretraining'"),
        ("python -m pytest tests/gone.py", "tests/gone.py does not exist"),
        ("python benchmarks/predict.py --networc unet", "no option '--networc'"),
        ("sbatch --nodes=2 deploy/slurm/gone.sbatch python x", "deploy/slurm/gone.sbatch does not exist"),
    ],
)
def test_a_wrong_command_is_found(line, why):
    assert why in (check(tuple(shlex.split(line))) or "")
