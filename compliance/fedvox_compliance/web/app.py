"""The application: routes, static files, refusals, and the guard around them all."""

from __future__ import annotations

from importlib import resources

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

from fedvox_compliance.errors import ComplianceError
from fedvox_compliance.web.guard import Guard
from fedvox_compliance.web.routes import NoSession, WrongForm, refuse_request, refuse_stranger, router
from fedvox_compliance.web.state import FormServer

_FORM_OVERHEAD = 64 * 1024


def create_app(server: FormServer, *, port: int) -> Guard:
    """The application for one open assessment.

    Args:
        server: the state.
        port: where it will listen; part of every check.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.server = server
    # Cookies know no ports: the name keeps two assessments on one computer apart.
    app.state.cookie = f"fedvox_{port}"
    app.include_router(router)
    static = resources.files("fedvox_compliance.web") / "static"
    app.mount("/static", StaticFiles(directory=str(static)), name="static")
    app.add_exception_handler(NoSession, refuse_stranger)
    app.add_exception_handler(WrongForm, refuse_stranger)
    app.add_exception_handler(ComplianceError, refuse_request)
    app.add_exception_handler(404, refuse_request)
    return Guard(app, port=port, max_body=server.max_upload + _FORM_OVERHEAD)
