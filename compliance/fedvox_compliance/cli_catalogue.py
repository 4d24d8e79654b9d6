"""`frameworks`: what can be asked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedvox_compliance.cli_common import JsonOption, LanguageOption, emit

if TYPE_CHECKING:
    from fedvox_compliance.catalogue import Catalogue
    from fedvox_compliance.messages import Messages

app = typer.Typer()


@app.command(epilog="Example: fedvox-compliance frameworks --profile gdpr --controls --language de")
def frameworks(
    profile: Annotated[str, typer.Option("--profile", help="hipaa, gdpr, iso or combined.")] = "combined",
    overlay: Annotated[
        list[str] | None, typer.Option("--overlay", help="Overlays to switch on.", show_default=False)
    ] = None,
    controls: Annotated[bool, typer.Option("--controls", help="List all questions.")] = False,
    scope: Annotated[bool, typer.Option("--scope", help="List the scope questions.")] = False,
    language: LanguageOption = "en",
    json: JsonOption = False,
) -> None:
    """List profiles, frameworks and overlays, with versions and hashes; on request all questions."""
    from fedvox_compliance.catalogue import load_catalogue
    from fedvox_compliance.interface import load_interface

    catalogue = load_catalogue(profile, tuple(overlay or ()))
    say = load_interface(language)
    value = _value(catalogue, say, controls=controls, scope=scope)
    lines = _overview(catalogue, say)
    if scope:
        lines += [f"scope.{q.id}: {say.scope_question(q)}" for q in catalogue.scope_questions.values()]
    if controls:
        lines += [f"{c.id}  [{c.severity}]  {say.question(c)}" for c in catalogue.controls.values()]
    emit(value, "\n".join(lines), as_json=json)


def _overview(catalogue: Catalogue, say: Messages) -> list[str]:
    from fedvox_compliance.catalogue import list_overlays, list_profiles
    from fedvox_compliance.interface import format_date

    lines = [say("cli.profiles", names=", ".join(list_profiles()))]
    lines.append(
        say(
            "cli.catalogue",
            version=catalogue.version,
            sha256=catalogue.sha256,
            law=format_date(catalogue.law_as_of, say.language),
        )
    )
    for framework in catalogue.frameworks.values():
        count = sum(c.framework == framework.id for c in catalogue.controls.values())
        title, edition = say.framework(framework)
        lines.append(f"  {framework.id}: {title} ({count}) – {edition}")
    lines.append(say("cli.overlays"))
    for overlay in list_overlays().values():
        title, status = say.overlay(overlay)
        lines.append(f"  {overlay.id}: {title} [{status}]")
    return lines


def _value(catalogue: Catalogue, say: Messages, *, controls: bool, scope: bool) -> dict[str, Any]:
    from fedvox_compliance.catalogue import list_overlays, list_profiles

    found: dict[str, Any] = {
        "schema": "fedvox.catalogue/1",
        "profiles": {name: list(members) for name, members in list_profiles().items()},
        "overlays": {o.id: {"title": o.title, "status": o.status} for o in list_overlays().values()},
        "profile": catalogue.profile,
        "version": catalogue.version,
        "sha256": catalogue.sha256,
        "law_as_of": catalogue.law_as_of.isoformat(),
        "frameworks": {
            f.id: {"title": f.title, "edition": f.edition, "sha256": f.sha256}
            for f in catalogue.frameworks.values()
        },
    }
    if scope:
        found["scope"] = {q.id: say.scope_question(q) for q in catalogue.scope_questions.values()}
    if controls:
        found["controls"] = [
            {
                "id": c.id,
                "framework": c.framework,
                "citation": c.citation,
                "title": say.title(c),
                "question": say.question(c),
                "guidance": say.guidance(c),
                "evidence": list(say.expected(c)),
                "obligation": c.obligation.value,
                "theme": c.theme,
                "severity": c.severity,
                "weight": c.weight,
                "gate": c.gate.value if c.gate else None,
                "only_if": list(c.only_if),
                "maps_to": list(c.maps_to),
            }
            for c in catalogue.controls.values()
        ]
    return found
