"""The process that runs a user's function: forked by its guard, with the socket to the service.

    Setup (read by the guard) ─► session of its own ─► confine ─► load the code ─► Ready
                                 Call ─► unit by unit: bind, call, read what it returned ─► Result

Nothing that the user's code prints reaches the socket: by then fd 1 is stderr, and fd 0 is empty. Whatever the code
raises, including `SystemExit`, becomes a `Failure` of that unit. The service enforces time limits by killing this
process; only an async function is cancelled here, because its units run at the same time. The process ends without
running exit handlers that the code registered.
"""

from __future__ import annotations

import asyncio
import faulthandler
import inspect
import os
import socket
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

from headrace_core.protocols.grader_check import Failure, Outcome

from ..protocol import Sample
from ..user_code.argument_binding import Binding, MissingInput, Unbindable
from ..user_code.logged import Logged
from ..user_code.notes import bounded
from ..user_code.return_values import to_outcome, to_outcomes
from . import frames
from .code_loading import CodeLoadError, load
from .kernel import containment, semaphores
from .kernel.syscalls import ContainmentFailed

_MESSAGE_CHARACTERS = 1_000
_TRACEBACK_LINES = 20
_PACKAGE_FOLDER = str(Path(__file__).parent.parent)


class Channel:
    """Reads and writes frames on the socket that the process was started with as stdin and stdout."""

    def __init__(self) -> None:
        self._socket = socket.socket(fileno=os.dup(0))
        self._stream = self._socket.makefile("rb")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)

    def receive(self) -> bytes | None:
        """The next message, or `None` when the service has closed the socket."""
        head = self._stream.read(frames.LENGTH.size)
        if len(head) < frames.LENGTH.size:
            return None
        (length,) = frames.LENGTH.unpack(head)
        return self._stream.read(length)

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self._socket.fileno()

    def keep_from_children(self) -> None:
        """Close the socket in every forked child: a child cannot answer calls, or keep the socket open."""
        os.register_at_fork(after_in_child=self.close)

    def close(self) -> None:
        """Close this process's copy of the socket."""
        self._stream.close()
        self._socket.close()

    def send(self, message: frames.HostReady | frames.Broken | frames.Result) -> None:
        """Send a message; blocks until the kernel has taken it."""
        self._socket.sendall(frames.frame(frames.encode(message)))


class Host:
    """A loaded function, and the loop that serves calls."""

    def __init__(self, channel: Channel, setup: frames.Setup, function: Callable[..., Any], binding: Binding) -> None:
        self._channel = channel
        self._setup = setup
        self._function = function
        self._binding = binding
        self._pid = os.getpid()
        self._concurrent = _is_async(function)

    def serve(self) -> None:
        """Serve calls until the service closes the socket."""
        with asyncio.Runner() as runner:  # one loop for all calls: an async function may keep clients open
            self._channel.send(frames.HostReady(self._binding.whole_group, self._concurrent))
            while (body := self._channel.receive()) is not None:
                call = frames.decode_request(body)
                assert isinstance(call, frames.Call)
                units = [frames.decode_unit(raw) for raw in call.units]
                if self._concurrent:
                    runner.run(self._score_at_once(units))
                else:
                    for unit in units:
                        self._reply(unit, self._score(unit, runner))

    async def _score_at_once(self, units: list[frames.Unit]) -> None:
        async def one(unit: frames.Unit) -> None:
            self._reply(unit, await self._score_async(unit))

        await asyncio.gather(*map(one, units))

    def _score(self, unit: frames.Unit, runner: asyncio.Runner) -> list[Outcome]:
        try:
            arguments, logged = self._binding.arguments(unit.samples)
            value = self._function(**arguments)
            if inspect.isawaitable(value):  # a plain function that returns a coroutine
                value = runner.run(_wait_for(value))
            return self._read(value, unit.samples, logged)
        except BaseException as error:  # whatever a user's code raises, SystemExit included, is its outcome
            return [_failure(error)] * len(unit.samples)

    async def _score_async(self, unit: frames.Unit) -> list[Outcome]:
        try:
            async with asyncio.timeout(self._setup.timeout) as limit:
                arguments, logged = self._binding.arguments(unit.samples)
                value = await self._function(**arguments)
            return self._read(value, unit.samples, logged)
        except BaseException as error:
            if isinstance(error, TimeoutError) and limit.expired():
                return [Failure("timeout", f"took longer than {self._setup.timeout:g} s")] * len(unit.samples)
            return [_failure(error)] * len(unit.samples)

    def _read(self, value: Any, samples: list[Sample], logged: Logged) -> list[Outcome]:
        outcomes = to_outcomes(value, len(samples)) if self._binding.whole_group else [to_outcome(value)]
        return bounded(logged.beside(outcomes))

    def _reply(self, unit: frames.Unit, outcomes: list[Outcome]) -> None:
        if os.getpid() != self._pid:  # the function forked, and this is the child: it must not answer too
            os._exit(0)
        try:
            self._channel.send(frames.Result(unit.index, outcomes))
        except UnicodeEncodeError:  # half of a surrogate pair in the name of a component
            fault = Failure("invalid_value", "the function returned a component whose name is not valid Unicode")
            self._channel.send(frames.Result(unit.index, [fault] * len(outcomes)))


async def _wait_for(value: Awaitable[Any]) -> Any:
    return await value


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _failure(error: BaseException) -> Failure:
    if isinstance(error, MissingInput):
        return Failure("bad_input", str(error))
    return Failure("exception", _one_line(error), _tail(error))


def _one_line(error: BaseException) -> str:
    return _encodable(" ".join("".join(traceback.format_exception_only(error)).split()))[:_MESSAGE_CHARACTERS]


def _tail(error: BaseException) -> str:
    """The last lines of the traceback, starting at the user's first frame."""
    step = error.__traceback__
    while step is not None and step.tb_frame.f_code.co_filename.startswith((_PACKAGE_FOLDER, "<frozen importlib")):
        step = step.tb_next
    lines = "".join(traceback.format_exception(type(error), error, step)).splitlines()
    return _encodable("\n".join(line[:500] for line in lines[-_TRACEBACK_LINES:]))


def _encodable(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def run(channel: Channel, cell: containment.Cell) -> NoReturn:
    """Serve the function that `cell.setup` names until the service closes the socket, then exit. Never returns."""
    try:
        os.setsid()
        _serve(channel, cell)
        status = 0
    except BaseException:
        traceback.print_exc()
        status = 1
    os._exit(status)


def _serve(channel: Channel, cell: containment.Cell) -> None:
    setup = cell.setup
    faulthandler.enable()  # a segmentation fault leaves a traceback on stderr
    try:
        containment.confine(cell)
        channel.keep_from_children()
        semaphores.provide()
        function = load(setup)
        binding = Binding(function, setup.form, setup.options)
    except ContainmentFailed as fault:
        channel.send(frames.Broken(str(fault), ""))
    except CodeLoadError as fault:
        channel.send(frames.Broken(_encodable(str(fault)), _tail(fault.cause)))
    except Unbindable as fault:
        channel.send(frames.Broken(f"{setup.path}:{setup.function} cannot be called: {fault}", ""))
    else:
        Host(channel, setup, function, binding).serve()
