"""An object in a process of its own: its memory, threads and libraries touch nobody else."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_T = TypeVar("_T")
_CLOSE_TIMEOUT_S = 30.0


class WorkerError(RuntimeError):
    """A call in the worker failed; the message has the cause."""


class Worker(Generic[_T]):
    """Makes an object in a new process and calls its methods there, one at a time.

    Example:
        with Worker(OfflineEngine, folder) as engine:
            burst = engine.call("run", load, 0)
    """

    def __init__(self, factory: Callable[..., _T], *arguments: object) -> None:
        """Start the process; the object is made there.

        Args:
            factory: what to call there, such as a class of an importable module.
            arguments: its arguments, as every argument and result something that pickle takes.

        Raises:
            WorkerError: the object could not be made.
        """
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments_there = (theirs, factory, arguments)
        self._process = context.Process(target=_serve, args=arguments_there, daemon=True)
        self._process.start()
        theirs.close()
        self._receive()

    def call(self, method: str, *arguments: object) -> Any:
        """The result of the object's method.

        Raises:
            WorkerError: the method failed, or the process ended.
        """
        self._connection.send((method, arguments))
        return self._receive()

    def _receive(self) -> Any:
        try:
            is_ok, value = self._connection.recv()
        except EOFError as error:
            raise WorkerError("the worker process ended by itself") from error
        if not is_ok:
            raise WorkerError(value)
        return value

    def close(self) -> None:
        """End the process; twice is allowed."""
        self._connection.close()
        self._process.join(_CLOSE_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _serve(connection: Connection, factory: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """The process: make the object, then answer calls until the other end is closed."""
    target: Any = None
    method = ""
    while True:
        try:
            value = getattr(target, method)(*arguments) if method else factory(*arguments)
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {error}"))
        else:
            if not method:
                target, value = value, None
            connection.send((True, value))
        try:
            method, arguments = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
