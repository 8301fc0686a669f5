"""
Which path shows what, to whom, and with which headers.

| path | what |
|---|---|
| ``/?subspace=NAME&before=VERSION&after=TASK`` | the page of one subspace |
| ``/api/status`` ``/api/tasks`` ``/api/versions`` ``/api/updates`` ``/api/subspaces`` | the same, as JSON |
| ``/sign-in`` ``/sign-out`` | take and drop a token, where one is needed |
| ``/static/...`` | style, script and uPlot |

Nothing changes anything: who reads the page, reads.
"""

import ipaddress
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeAlias
from urllib.parse import parse_qs

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from coordinator.access import Principal
from coordinator.state import Coordinator
from coordinator.web import view
from coordinator.web.reading import SET_ASIDE, Asked, Reading
from share_dist.commands.console import jsonable
from share_dist.errors import AccessError, ConfigError, NotAuthenticated, ShareError
from share_dist.telemetry import Event
from share_dist.wire.records import UpdateState

COOKIE: Final = "share_dist_token"

MAX_FORM_BYTES: Final = 4096

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Of every answer: nothing is taken from elsewhere, nothing is shown elsewhere."""

_STATUS_CODES: Final = {
    "INVALID_ARGUMENT": 400,
    "OUT_OF_RANGE": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "NOT_FOUND": 404,
    "RESOURCE_EXHAUSTED": 503,
    "UNAVAILABLE": 503,
}

_Next: TypeAlias = Callable[[Request], Awaitable[Response]]


def make_site(coordinator: Coordinator, *, is_local: bool) -> Starlette:
    """
    Make the site of a coordinator.

    Args:
        coordinator: What it shows.
        is_local: It is served on loopback, so only names of this machine are answered: a page
            of another site, whose name was made to point here, gets nothing.
    """
    return _Site(coordinator, is_local=is_local).application


class _Site:
    """The pages, with what they are made from."""

    def __init__(self, coordinator: Coordinator, *, is_local: bool) -> None:
        self._coordinator = coordinator
        self._reading = Reading(coordinator)
        self._is_local = is_local
        self.application = Starlette(
            routes=[
                Route("/", self._page),
                Route("/api/{what}", self._api),
                Route("/sign-in", self._show_sign_in, methods=["GET"]),
                Route("/sign-in", self._sign_in, methods=["POST"]),
                Route("/sign-out", self._sign_out, methods=["POST"]),
                Mount("/static", StaticFiles(packages=[("coordinator.web", "static")])),
            ],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=self._guard)],
            exception_handlers={HTTPException: self._http_error},
        )

    # --- pages ------------------------------------------------------------------------------

    async def _page(self, request: Request) -> Response:
        principal = self._principal(request)
        asked = _asked(request)
        page = await self._reading.page(principal, asked, can_sign_out=COOKIE in request.cookies)
        return HTMLResponse(await run_in_threadpool(view.render, page))

    async def _api(self, request: Request) -> Response:
        principal = self._principal(request)
        asked = _asked(request)
        what = request.path_params["what"]
        found: Any
        if what == "status":
            found = await self._reading.status(principal, asked.subspace)
        elif what == "tasks":
            found = await self._reading.tasks(principal, asked)
        elif what == "versions":
            found = await self._reading.versions(principal, asked)
        elif what == "updates":
            states = (*SET_ASIDE, UpdateState.PENDING)
            found = await self._reading.updates(principal, asked.subspace, states)
        elif what == "subspaces":
            found = await self._reading.subspaces(principal)
        else:
            raise HTTPException(404)
        return JSONResponse(await run_in_threadpool(jsonable, found))

    async def _show_sign_in(self, request: Request) -> Response:
        target = request.query_params.get("target", "/")
        return HTMLResponse(view.render_sign_in("", target))

    async def _sign_in(self, request: Request) -> Response:
        form = await _form(request)
        token, target = form.get("token", "").strip(), form.get("target", "/")
        try:
            self._identify(request, token)
        except NotAuthenticated as error:
            self._note(request, error)
            return HTMLResponse(view.render_sign_in(error.message, target), status_code=401)
        response = RedirectResponse(_own_path(target), status_code=303)
        response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        return response

    async def _sign_out(self, _request: Request) -> Response:
        response = RedirectResponse("/sign-in", status_code=303)
        response.delete_cookie(COOKIE)
        return response

    # --- who and how ------------------------------------------------------------------------

    def _principal(self, request: Request) -> Principal:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            token = request.cookies.get(COOKIE, "")
        return self._identify(request, token.strip())

    def _identify(self, request: Request, token: str) -> Principal:
        return self._coordinator.access.identify_token(token, _peer(request))

    async def _guard(self, request: Request, call_next: _Next) -> Response:
        """Answer every error as itself, and put the headers on every answer."""
        try:
            self._require_own_name(request.headers.get("host", ""))
            response = await call_next(request)
        except NotAuthenticated as error:
            response = self._ask_for_token(request, error)
        except ShareError as error:
            if isinstance(error, AccessError):
                self._note(request, error)
            response = _refused(request, _STATUS_CODES.get(error.status or "", 500), error.message)
        except HTTPException as error:
            response = _refused(request, error.status_code, error.detail)
        except Exception as error:  # noqa: BLE001 - all are logged in full, none is shown
            response = self._failed(request, error)
        response.headers.update(HEADERS)
        return response

    def _require_own_name(self, host: str) -> None:
        if self._is_local and not _is_local_name(host):
            raise HTTPException(421, "this page is for this machine: open it as localhost")

    async def _http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _refused(request, error.status_code, error.detail)

    def _ask_for_token(self, request: Request, error: NotAuthenticated) -> Response:
        is_shown = COOKIE in request.cookies or "authorization" in request.headers
        if is_shown:
            self._note(request, error)
        if request.url.path.startswith("/api/"):
            response = _refused(request, 401, error.message)
            response.headers["WWW-Authenticate"] = "Bearer"
            return response
        # a token that no longer counts is worth a word, none at all is not
        reason = error.message if is_shown else ""
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        return HTMLResponse(view.render_sign_in(reason, target), status_code=401)

    def _note(self, request: Request, error: AccessError) -> None:
        self._coordinator.access.refusals.add(
            "access_refused",
            peer=_peer(request),
            detail=f"{type(error).__name__}: {error.message}",
            subject=f"{request.method} {request.url.path}",
        )

    def _failed(self, request: Request, error: Exception) -> Response:
        incident_id = uuid.uuid4().hex[:12]
        self._coordinator.log.error(
            Event.REQUEST_FAILED.value,
            rpc=f"GET {request.url.path}",
            incident_id=incident_id,
            exc_info=error,
        )
        message = f"this page failed: look for incident {incident_id} in the coordinator's log"
        return _refused(request, 500, message)


def _peer(request: Request) -> str:
    return f"{request.client.host}:{request.client.port}" if request.client else ""


def _refused(request: Request, status_code: int, message: str) -> Response:
    if request.url.path.startswith("/api/"):
        return JSONResponse({"error": message}, status_code=status_code)
    return HTMLResponse(view.render_error(status_code, message), status_code=status_code)


def _asked(request: Request) -> Asked:
    query = request.query_params
    return Asked(
        subspace=query.get("subspace", ""),
        before_version=_count(query.get("before", "0")),
        after_task=query.get("after", ""),
    )


def _count(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) < 19):
        raise ConfigError(f"before is {text[:50]!r}: give the number of a version", key="before")
    return int(text)


async def _form(request: Request) -> dict[str, str]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            raise HTTPException(413, "this form is longer than any token")
    fields = parse_qs(body.decode("utf-8", errors="replace"), max_num_fields=8)
    return {name: values[0] for name, values in fields.items()}


def _own_path(target: str) -> str:
    """Return a path of this site, whatever was asked for."""
    is_own = (
        target.startswith("/") and not target.startswith(("//", "/\\")) and target.isprintable()
    )
    return target if is_own else "/"


def _is_local_name(host: str) -> bool:
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return name == "localhost"
