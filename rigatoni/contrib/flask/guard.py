"""Who may see the page, and that a change was asked for by the page itself."""

from __future__ import annotations

import hmac
import inspect
import secrets
from collections.abc import Callable
from typing import Literal
from urllib.parse import urlsplit

from flask import Request, Response, abort, request

from rigatoni import ConfigurationError

#: Gets the request; what is true lets it pass, what is false is a 403, and a response is sent as it is.
Authorize = Callable[[Request], object]

#: The name of the cookie, and of the field in each form, that hold the same random text.
COOKIE = "rigatoni_csrf"
FIELD = "csrf_token"
# Anything else in the cookie is not from here.
_LENGTH = len(secrets.token_urlsafe())


def checked_authorize(authorize: Authorize | Literal["public"] | None) -> Authorize:
    """Return who decides about requests.

    :raises ConfigurationError: without a decision, or with one that could only ever say yes.
    """
    if authorize == "public":
        return lambda request: True
    if not callable(authorize):
        raise ConfigurationError(
            f"authorize={authorize!r} does not say who may see the page: give a function of the request that returns "
            'True or False, or "public" if everybody who reaches the server may see events and discard dead letters'
        )
    if inspect.iscoroutinefunction(authorize):
        raise ConfigurationError("authorize is an async function, and what it returns is always true: write def")
    return authorize


def admit(authorize: Authorize) -> Response | None:
    """Ask whether the current request may pass.

    :returns: the response to send instead, None when it may.
    :raises ConfigurationError: when the answer is no answer, but something that is true whatever it means.
    """
    answer = authorize(request)
    if isinstance(answer, Response):
        return answer
    if callable(answer) or inspect.isawaitable(answer) or isinstance(answer, tuple):
        raise ConfigurationError(
            f"authorize returned a {type(answer).__name__}, which is always true: return True, False or a Response "
            "(make_response() makes one), and give the function itself, not a decorator"
        )
    if not answer:
        abort(403)
    return None


def new_token() -> str:
    """Return the token of this browser, a new one where it has none."""
    known = request.cookies.get(COOKIE, "")
    return known if len(known) == _LENGTH else secrets.token_urlsafe()


def set_token(response: Response, token: str, path: str) -> None:
    """Give the browser its token: only for this page, and never with a request that another site caused."""
    response.set_cookie(COOKIE, token, path=path, secure=request.is_secure, httponly=True, samesite="Strict")


def check_token() -> None:
    """Refuse a change that was not asked for by a form of this page.

    The token is in the form and in a cookie, so that every process can check it without a secret of its own. What the
    browser says of where the request comes from counts besides, because a neighbouring host may set cookies.
    """
    if _is_foreign(request.headers.get("Sec-Fetch-Site"), request.headers.get("Origin")):
        abort(403, "This was asked for by another site. Behind a proxy that changes the Host header: use ProxyFix.")
    cookie, field = request.cookies.get(COOKIE, ""), request.form.get(FIELD, "")
    if not cookie or not hmac.compare_digest(cookie.encode(), field.encode()):
        abort(403, "The form is not of this browser, or older than its cookies: reload the page and try again.")


def _is_foreign(site: str | None, origin: str | None) -> bool:
    if site is not None:
        return site != "same-origin"
    return origin is not None and urlsplit(origin).netloc != request.host
