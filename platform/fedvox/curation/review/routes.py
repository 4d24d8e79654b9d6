"""The addresses of the review page. One page is rendered here; everything in it is asked for as JSON or as voxels."""

from __future__ import annotations

import gzip
import tempfile
import urllib.parse
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse

from fedvox.curation.exchange.task import Wanted, export_task
from fedvox.curation.review.decisions import DecisionForm, decide, undo, what_changed
from fedvox.curation.review.sessions import Session, Sessions, csrf_matches
from fedvox.curation.review.slices import Array, Slices
from fedvox.curation.review.uploads import receive_upload
from fedvox.curation.review.views import case_view, finding_of, place, read_case, status_view
from fedvox.curation.store import LabelStore, Person, QueueItem
from fedvox.errors import DataError, FedvoxError, LabelConflict, StorageError
from fedvox.storage import read_bytes

router = APIRouter(include_in_schema=False)
_MISSING = ("unknown_case", "unknown_version", "unknown_finding", "no_such_plane", "unknown_item")
_LISTED = 500
_TRIED = 50  # items in a row that this person may not have, such as second opinions on their own readings


class NoSession(Exception):
    """Nobody is signed in here, or not any more."""


class NotAllowed(Exception):
    """The request lacks its secret, or the person's role does not allow it.

    Args:
        why: in words.
    """


class Desk:
    """What a request works with: the store, and who asks.

    Args:
        request: of a signed-in person.

    Raises:
        NoSession: of nobody.
    """

    def __init__(self, request: Request) -> None:
        state = request.app.state
        self.store: LabelStore = state.store
        self.slices: Slices = state.slices
        self.lease_s: float = state.lease_s
        sessions: Sessions = state.sessions
        found = sessions.find(request.cookies.get(state.cookie))
        if found is None:
            raise NoSession
        self.session: Session = found[0]
        self.person: Person = found[1]


def signed_in(request: Request) -> Desk:
    """For what only looks."""
    return Desk(request)


def deciding(request: Request) -> Desk:
    """For what changes something: with the session's secret, and not for readers."""
    desk = Desk(request)
    if not csrf_matches(desk.session, request.headers.get("x-csrf")):
        raise NotAllowed("the request lacks the page's secret; reload the page")
    if desk.person.role == "reader":
        raise NotAllowed(f"{desk.person.name} is admitted as a reader, who looks and does not decide")
    return desk


Looking = Annotated[Desk, Depends(signed_in)]
Deciding = Annotated[Desk, Depends(deciding)]


# ---- pages -------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fedvox.curation.review", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(template: str, status: int = 200, **values: Any) -> HTMLResponse:
    return HTMLResponse(_environment().get_template(template).render(**values), status_code=status)


@router.get("/")
def page(request: Request, token: str | None = None) -> Response:
    """The review page; without a session, the way in."""
    if token is not None:
        return _enter(request, token)
    try:
        desk = Desk(request)
    except NoSession:
        return _page("enter.html.j2", title="Sign in", failed=False, entered=False)
    return _page("review.html.j2", csrf=desk.session.csrf, person=desk.person, collection=desk.store.name)


@router.post("/")
async def sign_in(request: Request) -> Response:
    """The token, from the form of the page."""
    fields = urllib.parse.parse_qs((await request.body()).decode("ascii", errors="replace"))
    token = fields.get("token", [""])[0]
    return await run_in_threadpool(_enter, request, token)


@router.post("/leave")
def sign_out(request: Request) -> Response:
    """Forget the session."""
    request.app.state.sessions.forget(request.cookies.get(request.app.state.cookie))
    answer = RedirectResponse("/", status_code=303)
    answer.delete_cookie(request.app.state.cookie)
    return answer


def _enter(request: Request, token: str) -> Response:
    state = request.app.state
    identifier = state.sessions.sign_in(token.strip())
    if identifier is None:
        return _page("enter.html.j2", 403, title="Sign in", failed=True, entered=False)
    # A page that leads on, not a redirect: after a redirect from elsewhere a browser withholds strict cookies.
    answer = _page("enter.html.j2", title="Signed in", failed=False, entered=True)
    answer.set_cookie(
        state.cookie, identifier, httponly=True, samesite="strict", path="/", secure=state.secure
    )
    return answer


# ---- the queue ---------------------------------------------------------------------------------------------


@router.get("/api/status")
def status(desk: Looking) -> Response:
    """How far the round is."""
    return JSONResponse(status_view(desk.store, desk.person))


@router.get("/api/queue")
def queue(desk: Looking) -> Response:
    """The round's cases by urgency, for going to one of them. Second opinions are not listed: they are handed out."""
    items = [item for item in desk.store.queue.items() if item.purpose in ("queue", "audit")]
    return JSONResponse([{"case_id": i.case_id, "state": i.state} for i in items[:_LISTED]])


@router.post("/api/next")
def next_case(desk: Deciding, skip: int | None = None) -> Response:
    """Lease the most urgent case that nobody else looks at; with `skip`, give that item back for another one."""
    item = _skipped(desk, skip) if skip is not None else None
    if item is None:
        item = desk.store.queue.next(desk.person.name, lease_s=desk.lease_s)
    told = None if item is None else _case(desk, item.case_id)
    return JSONResponse({"case": told, "status": status_view(desk.store, desk.person)})


def _skipped(desk: Desk, item: int) -> QueueItem | None:
    """Another item than the one that is given back; None where there is no other."""
    queue = desk.store.queue
    held = [one for one in queue.items(state="leased") if one.id == item and one.reviewer == desk.person.name]
    if not held:
        return None
    for other in queue.items(state="open")[:_TRIED]:
        if other.case_id == held[0].case_id:
            continue
        found = queue.next(desk.person.name, lease_s=desk.lease_s, case_id=other.case_id)
        if found is not None:
            queue.release(item, desk.person.name)
            return found
    return None


@router.post("/api/items/{item}/release")
def release(desk: Deciding, item: int) -> Response:
    """Give a case back unanswered."""
    desk.store.queue.release(item, desk.person.name)
    return JSONResponse({"released": item})


@router.post("/api/cases/{case_id}/hold")
def hold(desk: Deciding, case_id: str) -> Response:
    """Renew the lease of a case that is still being looked at."""
    item = desk.store.queue.next(desk.person.name, lease_s=desk.lease_s, case_id=case_id)
    return JSONResponse({"item": None if item is None else item.id})


# ---- a case ------------------------------------------------------------------------------------------------


def _case(desk: Desk, case_id: str) -> dict[str, Any]:
    return case_view(desk.store, desk.slices, desk.person, read_case(desk.store, desk.person, case_id))


@router.get("/api/cases/{case_id}")
def case(desk: Looking, case_id: str) -> Response:
    """Everything but the voxels."""
    return JSONResponse(_case(desk, case_id))


@router.get("/api/cases/{case_id}/image/{axis}/{index}")
def image_plane(request: Request, desk: Looking, case_id: str, axis: int, index: int) -> Response:
    """A plane of the image."""
    reading = read_case(desk.store, desk.person, case_id)
    return _voxels(request, desk.slices.image(reading.case.case_id, axis, index))


@router.get("/api/cases/{case_id}/labels/{version}/{axis}/{index}")
def label_plane(
    request: Request, desk: Looking, case_id: str, version: int, axis: int, index: int
) -> Response:
    """A plane of a version's label map."""
    reading = read_case(desk.store, desk.person, case_id)
    return _voxels(request, desk.slices.labels(reading.version(version), axis, index))


@router.get("/api/cases/{case_id}/map/{name}/{axis}/{index}")
def map_plane(request: Request, desk: Looking, case_id: str, name: str, axis: int, index: int) -> Response:
    """A plane of an attention map: where the proposers are at odds."""
    reading = read_case(desk.store, desk.person, case_id)
    return _voxels(request, desk.slices.attention(reading.case.case_id, name, axis, index))


@router.get("/api/cases/{case_id}/findings/{number}/place")
def finding_place(desk: Looking, case_id: str, number: int) -> Response:
    """The voxel at which a finding is seen best."""
    reading = read_case(desk.store, desk.person, case_id)
    finding = finding_of(desk.store, reading, number)
    return JSONResponse({"voxel": place(desk.store.structures, desk.slices, reading, finding)})


@router.get("/api/cases/{case_id}/findings/{number}/picture")
def finding_picture(desk: Looking, case_id: str, number: int) -> Response:
    """A finding's picture, out of the store's own folder of rounds."""
    reading = read_case(desk.store, desk.person, case_id)
    parts = finding_of(desk.store, reading, number).picture.split("/")
    if parts[0] != "rounds" or not parts[-1].endswith(".png") or {"", ".", ".."} & set(parts):
        raise DataError(f"finding {number} has no picture in the store", "", code="unknown_finding")
    return Response(read_bytes(desk.store.location.child(*parts)), media_type="image/png")


def _voxels(request: Request, plane: Array) -> Response:
    """(rows, columns) as little-endian bytes, packed where that is quick and worth it."""
    body = plane.astype(plane.dtype.newbyteorder("<"), copy=False).tobytes()
    headers = {"x-voxel-type": plane.dtype.name}
    if "gzip" in request.headers.get("accept-encoding", ""):
        body = gzip.compress(body, 1)
        headers["content-encoding"] = "gzip"
    return Response(body, media_type="application/octet-stream", headers=headers)


# ---- decisions ---------------------------------------------------------------------------------------------


@router.post("/api/cases/{case_id}/decision")
def decision(desk: Deciding, case_id: str, form: DecisionForm, base: int | None = None) -> Response:
    """Accept, choose, reject, or take the uploaded mask; a conflict is told with what changed."""
    try:
        review = decide(desk.store, desk.session, desk.person, case_id, form)
    except LabelConflict as error:
        told = what_changed(desk.store, desk.slices, desk.person, case_id, error, base)
        return JSONResponse(told, status_code=409)
    return JSONResponse(
        {
            "decision": review.decision,
            "version": review.result,
            "can_undo": desk.session.undoable is not None,
            "status": status_view(desk.store, desk.person),
        }
    )


@router.post("/api/undo")
def take_back(desk: Deciding) -> Response:
    """Take the session's last decision back, and show that case again."""
    case = undo(desk.store, desk.session, desk.person)
    return JSONResponse({"case": _case(desk, case.case_id), "status": status_view(desk.store, desk.person)})


@router.get("/api/cases/{case_id}/task.zip")
def task(desk: Looking, case_id: str, version: int) -> Response:
    """A case as a folder for 3D Slicer, ITK-SNAP and MONAI Label."""
    reading = read_case(desk.store, desk.person, case_id)
    reading.version(version)
    folder = tempfile.TemporaryDirectory(prefix="fedvox-task-")
    try:
        inside = Path(folder.name) / case_id
        export_task(desk.store, [Wanted(case_id, version)], inside)
        packed = Path(folder.name) / "task.zip"
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:  # the volumes are packed already
            for file in sorted(path for path in inside.rglob("*") if path.is_file()):
                archive.write(file, Path(case_id) / file.relative_to(inside))
    except BaseException:
        folder.cleanup()
        raise
    return FileResponse(packed, filename=f"{case_id}.zip", background=BackgroundTask(folder.cleanup))


@router.post("/api/cases/{case_id}/edited")
async def edited(
    request: Request, desk: Deciding, case_id: str, version: int, allow_empty: bool = False
) -> Response:
    """An edited mask; answers with what it changes, and waits to be confirmed by a decision."""
    name = urllib.parse.unquote(request.headers.get("x-file-name", ""))
    reading = await run_in_threadpool(read_case, desk.store, desk.person, case_id)
    told = await receive_upload(
        desk.store, desk.session, reading, version, name, request.stream(), allow_empty=allow_empty
    )
    return JSONResponse(told)


# ---- refusals ----------------------------------------------------------------------------------------------


def add_refusals(app: FastAPI) -> None:
    """Every error as one JSON object: what, and what to do about it."""
    app.add_exception_handler(
        NoSession, _refuse(401, lambda _: "sign in first", "Open the printed address again.")
    )
    app.add_exception_handler(NotAllowed, _refuse(403, str, ""))
    app.add_exception_handler(HTTPException, _refuse(404, lambda _: "there is nothing here", ""))
    app.add_exception_handler(RequestValidationError, _refuse(422, _first_field, "Reload the page."))
    app.add_exception_handler(FedvoxError, _refuse_known)


def _refuse(
    status: int, words: Callable[[Any], str], remedy: str
) -> Callable[[Request, Exception], Response]:
    def handler(_: Request, error: Exception) -> Response:
        code = getattr(error, "status_code", status)
        return JSONResponse({"error": words(error), "remedy": remedy, "code": "refused"}, status_code=code)

    return handler


def _first_field(error: Any) -> str:
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"


def _refuse_known(_: Request, error: Exception) -> Response:
    code = getattr(error, "code", "")
    status = 422
    if isinstance(error, LabelConflict):
        status, code = 409, "conflict"
    elif isinstance(error, StorageError):
        status = 503
    elif code in _MISSING:
        status = 404
    elif code == "case_deleted":
        status = 410
    message, remedy = getattr(error, "message", str(error)), getattr(error, "remedy", "")
    return JSONResponse({"error": message, "remedy": remedy, "code": code}, status_code=status)
