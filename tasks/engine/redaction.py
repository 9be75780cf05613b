"""Credentials stay in the program: taken out of addresses before they are used, and out of text where it leaves."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar
from urllib.parse import unquote, urlsplit

from tasks.ml import machine

HIDDEN = "***"
SHORTEST = 6
"""A shorter value is hidden where it stands in an address only: as a word it would be found in innocent text."""

_NAMES = re.compile(r"(PASSWORD|SECRET|SECRET_KEY|SECRET_ACCESS_KEY|TOKEN|API_KEY|AUTH_STRING|AUTH)$")
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@]+(?=@)")


def hide(text: str) -> str:
    """Returns a text without user and password of addresses, and without the secrets that the environment names."""
    for value in sorted(set(_secrets()), key=len, reverse=True):
        text = text.replace(value, HIDDEN)
    return _IN_ADDRESS.sub(HIDDEN, text)


def _secrets() -> Iterator[str]:
    for name, value in machine.environment().items():
        found = []
        if _NAMES.search(name):
            found = [value, value.partition(":")[2]]
        elif "://" in value and "@" in value:
            given = _IN_ADDRESS.search(value)
            password = given[0].partition(":")[2] if given else ""
            found = [password, unquote(password)]
        yield from (one for one in found if len(one) >= SHORTEST)


def take_out_of_addresses() -> None:
    """Moves user and password from the addresses of HTTP servers to the variables where their clients look for them.

    An address turns up in errors, logs and states of runs; those variables do not.
    """
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "PREFECT_API_URL"):
        try:
            parts = urlsplit(os.environ.get(name, ""))
        except ValueError:  # no address, which its client will say
            continue
        if parts.scheme not in ("http", "https") or "@" not in parts.netloc:
            continue
        given, _, host = parts.netloc.rpartition("@")
        user, _, password = (unquote(part) for part in given.partition(":"))
        os.environ[name] = parts._replace(netloc=host).geturl()
        if name == "PREFECT_API_URL":
            os.environ["PREFECT_API_AUTH_STRING"] = f"{user}:{password}"
        else:
            os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"] = user, password


def cleanse(error: BaseException | None) -> None:
    """Takes credentials out of an error and of those that it came from: who reports it may be another library."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        error.args = tuple(hide(part) if isinstance(part, str) else part for part in error.args)
        if isinstance(message := getattr(error, "message", None), str):
            with suppress(AttributeError):  # made of what was cleansed
                error.message = hide(message)  # type: ignore[attr-defined]
        error = error.__cause__ or error.__context__


P = ParamSpec("P")
R = TypeVar("R")


def cleansing(function: Callable[P, R]) -> Callable[P, R]:
    """Makes a function out of which errors come without credentials."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except BaseException as error:
            cleanse(error)
            raise

    return call


class _Record(logging.LogRecord):
    """A log record of any library without credentials, before any handler has it.

    Prefect shows the way of every error on a run's page; of one that the user can mend, its sentence is enough.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (clean := hide(said := self.getMessage())) != said:
            self.msg, self.args = clean, ()
        if self.exc_info and self.exc_info[1]:
            cleanse(self.exc_info[1])
            from tasks.contracts.base import FeatherweightError

            if isinstance(self.exc_info[1], FeatherweightError):
                self.exc_info = None


def watch_logs() -> None:
    """Lets every log record of this process be made like that; Prefect keeps them in its database."""
    logging.setLogRecordFactory(_Record)


class Formatter(logging.Formatter):
    """The last look at a log line, with what was found on the way of an error."""

    def format(self, record: logging.LogRecord) -> str:
        return hide(super().format(record))
