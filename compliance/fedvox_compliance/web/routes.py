"""The addresses of the web form. Every page is rendered here; script only spares the reloading."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from collections.abc import Callable
from functools import lru_cache
from importlib import resources
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.datastructures import FormData

from fedvox_compliance.errors import ComplianceError, ConflictError, UsageError
from fedvox_compliance.interface import load_interface
from fedvox_compliance.report import build_view, render_html
from fedvox_compliance.scope import open_scope_questions
from fedvox_compliance.web import actions
from fedvox_compliance.web.guard import CONTENT_SECURITY_POLICY
from fedvox_compliance.web.state import FormServer, Session, clock_text, csrf_matches
from fedvox_compliance.web.views import FILTERS, Pages
from fedvox_compliance.workspace import Workspace, system_clock

router = APIRouter(include_in_schema=False)
_WARY = {"x-robots-tag": "noindex"}


class NoSession(Exception):
    """The browser did not come through the printed address."""


class WrongForm(Exception):
    """A form without its session's secret."""


@lru_cache(maxsize=1)
def environment() -> Environment:
    """The template engine: escaping always on, undefined names an error."""
    return Environment(
        loader=PackageLoader("fedvox_compliance.web", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A rendered page."""
    return HTMLResponse(
        environment().get_template(template).render(**values), status_code=status, headers=_WARY
    )


@router.get("/")
async def overview(request: Request) -> Response:
    """The overview; or, with the token of the printed address, the way in."""
    token = request.query_params.get("token")
    if token is not None:
        return _enter(request, token)
    return await _show(
        request,
        "overview.html.j2",
        lambda pages: {"chart": pages.chart(labels=True), "steps": pages.next_steps()},
    )


@router.get("/static/report.css")
async def base_style() -> Response:
    """The style that form and report share."""
    text = (resources.files("fedvox_compliance.report") / "templates" / "report.css").read_text(
        encoding="utf-8"
    )
    return Response(text, media_type="text/css")


@router.get("/scope")
async def scope(request: Request) -> Response:
    """The scope questions."""
    return await _show(request, "scope.html.j2", lambda pages: {"questions": pages.scope()})


@router.get("/section/{theme}")
async def section(request: Request, theme: str) -> Response:
    """The questions of one theme."""
    show = request.query_params.get("show", "all")

    def values(pages: Pages) -> dict[str, Any]:
        names = [link.theme for link in pages.sections()]
        if theme not in names:
            raise UsageError(pages.say("web.error_missing"))
        at = names.index(theme)
        return {
            "theme": theme,
            "show": show if show in FILTERS else "all",
            "filters": FILTERS,
            "questions": pages.questions(theme, show),
            "before": names[at - 1] if at else "",
            "after": names[at + 1] if at + 1 < len(names) else "",
        }

    return await _show(request, "section.html.j2", values)


@router.get("/report")
async def report(request: Request) -> Response:
    """The HTML report of this moment, under a policy that allows its own style sheet and nothing else."""
    server, session = _session(request)

    def render() -> str:
        with server.opened() as space:
            scored = server.score(space)
            view = build_view(
                space.assessment, space.catalogue, scored, language=session.language, folder=space.folder
            )
        return render_html(view)

    text = await run_in_threadpool(render)
    styles = re.findall(r"<style>(.*?)</style>", text, re.S)
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in styles
    )
    policy = CONTENT_SECURITY_POLICY.replace("style-src 'self'", f"style-src {hashes}")
    return HTMLResponse(text, headers={"content-security-policy": policy})


@router.post("/who")
async def who(request: Request) -> Response:
    """Say who is answering."""
    server, session, fields = await _form(request)
    try:
        actions.set_name(session, fields)
    except ComplianceError as error:
        return _failed(request, error)
    with server.opened() as space:
        unasked = open_scope_questions(space.catalogue, space.assessment.stated_scope)
    return RedirectResponse("/scope" if unasked else "/", status_code=303)


@router.post("/language")
async def language(request: Request) -> Response:
    """Change the language, and stay on the page."""
    _, session, fields = await _form(request)
    actions.set_language(session, fields)
    return RedirectResponse(_local(fields.get("back")), status_code=303)


@router.post("/scope/{question}")
async def save_scope(request: Request, question: str) -> Response:
    """Save one scope statement."""
    return await _save(
        request, lambda s, w, f: actions.save_scope(w, s, question, f), f"/scope#{question}", None
    )


@router.post("/answer/{control}")
async def save_answer(request: Request, control: str) -> Response:
    """Save one answer."""
    return await _save(request, lambda s, w, f: actions.save_answer(w, s, control, f), None, control)


@router.post("/evidence/{control}")
async def attach(request: Request, control: str) -> Response:
    """Attach an uploaded document."""
    server, _, fields = await _form(request)
    try:
        file = await actions.receive_upload(fields.get("file"), server.space.folder, server.max_upload)
    except ComplianceError as error:
        return _failed(request, error)
    try:
        return await _save(request, lambda s, w, f: actions.attach(w, s, control, file, f), None, control)
    finally:
        shutil.rmtree(file.parent, ignore_errors=True)


@router.post("/evidence/{control}/share")
async def share(request: Request, control: str) -> Response:
    """Use a related question's document here too."""
    return await _save(request, lambda s, w, f: actions.share(w, s, control, f), None, control)


@router.post("/evidence/{control}/detach")
async def detach(request: Request, control: str) -> Response:
    """Detach a document."""
    return await _save(request, lambda s, w, f: actions.detach(w, s, control, f), None, control)


@router.post("/confirm/{control}")
async def confirm(request: Request, control: str) -> Response:
    """Confirm an answer as a second person."""
    return await _save(request, lambda s, w, f: actions.confirm(w, s, control, f), None, control)


Action = Callable[[Session, Workspace, FormData], None]


async def _save(request: Request, action: Action, back: str | None, control: str | None) -> Response:
    """Change the assessment under its lock; answer script with JSON, and a plain form with the page again."""
    server, session, fields = await _form(request)
    scripted = "application/json" in request.headers.get("accept", "")

    def change() -> Response:
        with server.opened() as space:
            if control is not None:
                space.catalogue.control(control)
            problem: ComplianceError | None = None
            try:
                _require_name(session)
                action(session, space, fields)
            except ComplianceError as error:
                problem = error
            pages = Pages(server, session, space)
            if scripted:
                return _outcome(pages, control, problem, fields)
            if problem is not None:
                return _failed(request, problem)
            return RedirectResponse(back or _card_address(pages, control, fields), status_code=303)

    return await run_in_threadpool(change)


def _outcome(
    pages: Pages, control: str | None, problem: ComplianceError | None, fields: FormData
) -> Response:
    """What script gets: whether it was saved, and the parts of the page that changed."""
    say = pages.say
    values = pages.common()
    found: dict[str, Any] = {
        "saved": problem is None,
        "status": say("web.saved", time=clock_text(system_clock()))
        if problem is None
        else _why(say, problem),
        "panel": _fragment("_panel.html.j2", **values),
        "sections": _fragment("_sections.html.j2", **values, theme=fields.get("theme", "")),
        "sentence": values["panel"].sentence,
    }
    if control is not None:
        question = pages.question(pages.space.catalogue.controls[control])
        found["version"] = question.version
        found["meta"] = _fragment("_meta.html.j2", **values, q=question, theme=fields.get("theme", ""))
        if isinstance(problem, ConflictError):
            found["status"] = say("web.conflict_short")
            found["card"] = _fragment("_card.html.j2", **values, q=question, theme=fields.get("theme", ""))
    status = 200 if problem is None else 409 if isinstance(problem, ConflictError) else 422
    return JSONResponse(found, status_code=status)


def _why(say: Any, problem: ComplianceError) -> str:
    return str(say("web.not_saved", why=problem.told_in(say.language)))


def _fragment(template: str, **values: Any) -> str:
    return environment().get_template(template).render(**values)


async def _show(request: Request, template: str, values: Callable[[Pages], dict[str, Any]]) -> Response:
    server, session = _session(request)
    here = request.url.path + (f"?{request.url.query}" if request.url.query else "")

    def render() -> Response:
        with server.opened() as space:
            pages = Pages(server, session, space)
            return page(template, here=here, **pages.common(), **values(pages))

    return await run_in_threadpool(render)


def _enter(request: Request, token: str) -> Response:
    server: FormServer = request.app.state.server
    identifier = server.login(token)
    if identifier is None:
        raise NoSession
    # A page that leads on, not a redirect: after a redirect from elsewhere a browser withholds strict cookies.
    answer = page("enter.html.j2", t=load_interface(server.language))
    answer.set_cookie(request.app.state.cookie, identifier, httponly=True, samesite="strict", path="/")
    return answer


def _session(request: Request) -> tuple[FormServer, Session]:
    server: FormServer = request.app.state.server
    session = server.session(request.cookies.get(request.app.state.cookie))
    if session is None:
        raise NoSession
    return server, session


async def _form(request: Request) -> tuple[FormServer, Session, FormData]:
    server, session = _session(request)
    fields = await request.form(max_files=1, max_fields=40)
    if not csrf_matches(session, fields.get("csrf")):
        raise WrongForm
    return server, session, fields


def _require_name(session: Session) -> None:
    if not session.name:
        raise UsageError(load_interface(session.language)("web.who_missing"))


def _card_address(pages: Pages, control: str | None, fields: FormData) -> str:
    theme = pages.space.catalogue.controls[control].theme if control else ""
    show = fields.get("show")
    query = f"?show={show}" if show in FILTERS and show != "all" else ""
    return f"/section/{theme}{query}#{control}"


def _local(address: object) -> str:
    """An address of this server, or the overview: never a redirect elsewhere."""
    if isinstance(address, str) and re.fullmatch(r"/(?!/)[A-Za-z0-9/_.?=&#:-]*", address):
        return address
    return "/"


def _failed(request: Request, error: ComplianceError) -> Response:
    """A page that says what went wrong and leads back to where one was."""
    _, session = _session(request)
    status = 409 if isinstance(error, ConflictError) else 422
    why, remedy = error.told_in(session.language), error.remedy if session.language == "en" else ""
    return page("error.html.j2", status, t=load_interface(session.language), why=why, remedy=remedy)


async def refuse_stranger(request: Request, _: Exception) -> Response:
    """Without the printed address there is nothing to see."""
    server: FormServer = request.app.state.server
    say = load_interface(server.language)
    return page("error.html.j2", 403, t=say, why=say("web.error_token"), remedy="")


async def refuse_request(request: Request, error: Exception) -> Response:
    """A refusal that a page raised."""
    session = request.app.state.server.session(request.cookies.get(request.app.state.cookie))
    say = load_interface(session.language if session else request.app.state.server.language)
    why = error.told_in(say.language) if isinstance(error, ComplianceError) else say("web.error_missing")
    return page("error.html.j2", 404, t=say, why=why, remedy="")
