"""The console's pages and forms. Every POST brings the form's token; nothing a person wrote is ever in an address."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import Response

from infra.errors import UsageError
from infra.ledger import keys, reviews
from producer.gateway.api.items import ref_of
from producer.gateway.console.pages import ASSETS, PATH, Language, Words, go_to, render
from producer.gateway.console.panels import Tried, queue_page, try_text
from producer.gateway.console.visitor import (
    LANGUAGE_COOKIE,
    YEAR_S,
    AnyWords,
    Console,
    LoggedIn,
    LoginFirstError,
    PageError,
    Visitor,
    checked_form,
    console_of,
    csrf_of,
    is_fragment,
    logged_in,
    new_token,
    set_cookie,
    token_of,
)
from producer.gateway.problems import NoSuchThingError
from producer.intake.verdict_waiter import ItemRef
from schemas.access import Role
from schemas.items import Label

_NO_NUL: Final = r"^[^\x00]*$"

router = APIRouter(include_in_schema=False)
Here = Annotated[Console, Depends(console_of)]
OurForm = Depends(checked_form)
ItemName = Annotated[str | None, Query(max_length=60)]


@router.get("/")
async def root() -> Response:
    """Send a person who opens the gateway's address to the console."""
    return go_to()


@router.get(PATH + "/static/{name}")
async def static(name: str) -> Response:
    """Our style sheet and script."""
    if name not in ASSETS:
        raise NoSuchThingError("file", name[:80])
    return ASSETS[name].response()


@router.get(PATH + "/login")
async def login_page(request: Request, words: AnyWords, console: Here) -> Response:
    """The login page; a logged-in visitor is sent on to the console."""
    try:
        await logged_in(request, console)
    except LoginFirstError:
        return _login(request, words)
    return go_to()


@router.post(PATH + "/login", dependencies=[OurForm])
async def login(
    request: Request, words: AnyWords, console: Here, key: Annotated[str, Form(max_length=200)] = ""
) -> Response:
    """Begin a session under a new token, so that one known before the login is worth nothing."""
    found = await console.gateway.ask(keys.find_key, key.strip())
    if found is None:
        return _login(request, words, problem=words("login.unknown"), status=401)
    if found.role is Role.SERVICE:  # its keys are for programs
        return _login(request, words, problem=words("login.service"), status=403)
    token = await asyncio.to_thread(console.begin_session, found.id)
    answer = go_to()
    set_cookie(request, answer, token, lifetime_s=console.gateway.settings.console_session_s)
    return answer


def _login(request: Request, words: Words, *, problem: str | None = None, status: int = 200) -> Response:
    token = token_of(request) or new_token()
    answer = render("login.html", words, status=status, csrf=csrf_of(token), problem=problem)
    set_cookie(request, answer, token)
    return answer


@router.post(PATH + "/logout", dependencies=[OurForm])
async def logout(request: Request, console: Here) -> Response:
    """End the session."""
    await asyncio.to_thread(console.end_session, token_of(request))
    answer = go_to("/login")
    set_cookie(request, answer, new_token())
    return answer


@router.post(PATH + "/language", dependencies=[OurForm])
async def choose_language(request: Request, language: Annotated[Language, Form()]) -> Response:
    """Remember the visitor's language."""
    answer = go_to()
    set_cookie(request, answer, language.value, name=LANGUAGE_COOKIE, lifetime_s=YEAR_S)
    return answer


@router.get(PATH)
async def page(words: AnyWords, visitor: LoggedIn, console: Here, item: ItemName = None) -> Response:
    """Everything on one page, with an item of the queue in front."""
    return await _page(words, visitor, console, wanted=ref_of(item) if item else None)


@router.get(PATH + "/fleet")
async def fleet(words: AnyWords, visitor: LoggedIn, console: Here) -> Response:
    """The operator's part, which our script asks for again and again."""
    facts = await asyncio.to_thread(console.fleet.facts, visitor.tenant)
    return render("fleet.html", words, visitor=visitor, fleet=facts)


@router.get(PATH + "/review")
async def review(
    request: Request, words: AnyWords, visitor: LoggedIn, console: Here, item: ItemName = None
) -> Response:
    """The queue with an item in front."""
    wanted = ref_of(item) if item else None
    if not is_fragment(request):
        return await _page(words, visitor, console, wanted=wanted)
    return await _review(words, visitor, console, wanted=wanted)


@router.post(PATH + "/decide", dependencies=[OurForm])
async def decide(
    *,
    request: Request,
    words: AnyWords,
    visitor: LoggedIn,
    console: Here,
    item: Annotated[str, Form(max_length=60)],
    label: Annotated[Label, Form()],
    note: Annotated[str, Form(max_length=500, pattern=_NO_NUL)] = "",
    following: Annotated[str, Form(max_length=60)] = "",
) -> Response:
    """Store a human label, and show what follows."""
    if not visitor.may_decide:
        raise PageError(403, words, words("error.role"))
    place = ref_of(item)
    try:
        await console.gateway.ask(
            reviews.decide,
            place.run_id,
            place.seq,
            label=label,
            moderator=visitor.principal.key_id,
            note=note.strip(),
            tenant=visitor.tenant,
        )
    except UsageError as error:
        raise NoSuchThingError("item", item) from error
    if not is_fragment(request):
        return go_to(f"?item={following}" if following else "")
    wanted = ref_of(following) if following else None
    return await _review(words, visitor, console, wanted=wanted, decided=(item, label))


@router.post(PATH + "/try", dependencies=[OurForm])
async def try_one(
    *,
    request: Request,
    words: AnyWords,
    visitor: LoggedIn,
    console: Here,
    text: Annotated[str, Form()] = "",
    question: Annotated[str, Form()] = "",
) -> Response:
    """Have a text judged and show the verdict."""
    if not visitor.may_try:
        raise PageError(403, words, words("error.role"))
    tried = await try_text(console.gateway, visitor.principal, text, question)
    if is_fragment(request):
        return render("verdict.html", words, status=tried.status, tried=tried)
    return await _page(words, visitor, console, tried=tried)


async def _page(
    words: Words, visitor: Visitor, console: Console, *, wanted: ItemRef | None = None, tried: Tried | None = None
) -> Response:
    queue, facts = await asyncio.gather(
        console.gateway.ask(queue_page, visitor.tenant, wanted),
        asyncio.to_thread(console.fleet.facts, visitor.tenant),
    )
    guard = console.gateway.default_guard
    return render("page.html", words, visitor=visitor, queue=queue, fleet=facts, tried=tried, guard=guard, decided=None)


async def _review(
    words: Words,
    visitor: Visitor,
    console: Console,
    *,
    wanted: ItemRef | None,
    decided: tuple[str, Label] | None = None,
) -> Response:
    queue = await console.gateway.ask(queue_page, visitor.tenant, wanted)
    return render("review.html", words, visitor=visitor, queue=queue, decided=decided)
