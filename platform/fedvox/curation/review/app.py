"""The application: routes, static files, refusals, and the guard around them all."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from fedvox.curation.review.guard import Guard
from fedvox.curation.review.routes import add_refusals, router
from fedvox.curation.review.sessions import Sessions
from fedvox.curation.review.slices import Slices
from fedvox.curation.store import LabelStore

MAX_UPLOAD = 512 << 20
"""Bytes of an edited mask, as its file has them."""


def create_app(store: LabelStore, *, origin: str, lease_s: float = 1800.0) -> Guard:
    """The application for one label store.

    Args:
        store: that is reviewed.
        origin: where it will be served, such as `http://127.0.0.1:8080`; part of every check.
        lease_s: for how long a case that was handed out is kept for that person.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.store = store
    app.state.slices = Slices(store)
    app.state.sessions = Sessions(store)
    app.state.lease_s = lease_s
    # Cookies know no ports: the name keeps two stores on one computer apart.
    app.state.cookie = f"fedvox_review_{origin.rpartition(':')[2]}"
    app.state.secure = origin.startswith("https:")
    app.include_router(router)
    static = resources.files("fedvox.curation.review") / "static"
    app.mount("/static", StaticFiles(directory=str(static)), name="static")
    add_refusals(app)
    return Guard(app, origin=origin, max_upload=MAX_UPLOAD)
