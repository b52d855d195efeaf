"""The process that student code runs in: functions are called there on drawn problems, and answers come back.

It is forked from the process at work, which has torch loaded already, so that it starts at once; where there is no fork
(Windows) it is spawned. Answers are read by the unpickler that admits tensors and plain containers only. Time is
limited per call, memory beyond what the process starts with; print-outs are caught.
"""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, TypeVar

from zipmix.checker.source import Source
from zipmix.checker.student import Limits, Wanted, pack, serve, unpack
from zipmix.counts.checks import InputError
from zipmix.files import safe_pickle

# Time in which a process must have started before it runs anything of the solution.
START_SECONDS = 60.0

T = TypeVar("T")

# Bytes that an answer may have; more are no answer.
LONGEST_ANSWER = 2**30


class Found(NamedTuple):
    """A function of the solution that has a known name."""

    where: str
    arguments: tuple[str, ...]
    signature: str  # what is wrong with its arguments, "" if nothing


class Loaded(NamedTuple):
    """What running the file gave."""

    functions: dict[str, Found]
    others: tuple[str, ...]  # names and places of other functions
    error: tuple[str, str] | None  # place and sentence of the first statement that failed
    printed: str


class Answer(NamedTuple):
    """What a call came to: a value or an error."""

    value: Any
    error: str  # "" if none
    error_name: str  # class of the exception, or "timeout", "ended"
    where: str
    printed: str
    substituted: bool  # whether one of the solution's other functions was replaced by the project's own


class Gone(NamedTuple):
    """Why a process did not answer."""

    kind: str  # "timeout" or "ended"
    sentence: str


def _loaded(answer: dict[str, Any]) -> Loaded:
    functions = {name: Found(at, tuple(used), wrong) for name, (at, used, wrong) in answer["functions"].items()}
    error = (answer["error"][0], answer["error"][1]) if answer["error"] else None
    return Loaded(functions, tuple(answer["others"]), error, answer["printed"])


class Worker:
    """A process that holds one solution; started when it is first needed, and again after it was ended."""

    def __init__(self, source: Source, wanted: Wanted, limits: Limits):
        self._source = source
        self._wanted = wanted
        self._limits = limits
        self._definitions_only = source.is_notebook
        self._process: Any = None
        self._connection: Connection | None = None
        self.loaded = self._start()

    def _start(self) -> Loaded:
        loaded = self._try_start()
        if isinstance(loaded, Gone) and not self._definitions_only:
            # The file itself does not come to an end; its functions can be checked all the same.
            self._definitions_only = True
            again = self._try_start()
            if isinstance(again, Loaded):
                return again._replace(error=(self._source.name, f"{loaded.sentence} when it is run"))
        if isinstance(loaded, Gone):
            return Loaded({}, (), (self._source.name, f"{loaded.sentence} when it is run"), "")
        return loaded

    def _try_start(self) -> Loaded | Gone:
        forked = "fork" in multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if forked else "spawn")
        here, there = context.Pipe()
        arguments = (there, here, self._source, self._wanted, self._limits, self._definitions_only, forked)
        process = context.Process(target=serve, args=arguments, daemon=True)  # type: ignore[attr-defined]
        sys.stdout.flush()
        sys.stderr.flush()
        with warnings.catch_warnings():
            # Python warns of forking where threads run; the child does nothing with theirs, and uses one of its own.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            try:
                process.start()
            except (AttributeError, TypeError, pickle.PicklingError):
                raise InputError(
                    "solution: these functions cannot be handed to a process of their own on this system; "
                    "write them in a file and check that."
                ) from None
        there.close()
        self._process, self._connection = process, here
        began = self._receive(START_SECONDS, bool)
        if isinstance(began, Gone):
            return began
        return self._receive(self._limits.seconds, _loaded)

    def call(
        self, name: str, arguments: Mapping[str, Any], *, points: Any, own: bool, noisy: bool, single: bool
    ) -> Answer:
        """Calls a function of the solution.

        Args:
            name: of the function.
            arguments: by name; those that the function does not take and need not take are left out.
            points: where to evaluate the log density of the distribution that it returns; None for a plain value.
            own: whether the solution's other functions stand, or the project's own replace them.
            noisy: whether the ELBO that the function calls is made to round as float32 sums do.
            single: whether tensors are passed in float32.
        """
        if self._process is None:
            again = self._start()
            if self._process is None:
                where, sentence = again.error or ("", "cannot be run a second time")
                return Answer(None, sentence, "ended", where, "", False)
        request = {"name": name, "arguments": dict(arguments), "points": points}
        request |= {"own": own, "noisy": noisy, "single": single}
        try:
            assert self._connection is not None
            self._connection.send_bytes(pickle.dumps(pack(request)))
            answer = self._receive(self._limits.seconds, lambda answer: Answer(**answer))
        except OSError:
            answer = self._ended()
        if isinstance(answer, Gone):
            return Answer(None, answer.sentence, answer.kind, "", "", False)
        return answer

    def close(self) -> None:
        """Ends the process and all that it started."""
        if self._process is None:
            return
        self._kill()
        self._process.join()
        assert self._connection is not None
        self._connection.close()
        self._process.close()
        self._process = self._connection = None

    def _kill(self) -> None:
        if self._process.is_alive():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if hasattr(os, "killpg") and os.getpgid(self._process.pid) == self._process.pid:
                    os.killpg(self._process.pid, signal.SIGKILL)
                else:
                    self._process.kill()

    def _receive(self, seconds: float, read: Callable[[Any], T]) -> T | Gone:
        """What the process sends, or why nothing came."""
        assert self._connection is not None
        try:
            if not self._connection.poll(seconds):
                self.close()
                return Gone("timeout", f"does not come to an end in {seconds:g} seconds")
            # An answer that was begun must come to an end as well.
            watch = threading.Timer(seconds, self._kill)
            watch.start()
            try:
                content = self._connection.recv_bytes(LONGEST_ANSWER)
            finally:
                watch.cancel()
            return read(unpack(safe_pickle.loads(content, "the answer")))
        except EOFError:
            return self._ended()
        except (OSError, InputError, ValueError, TypeError, LookupError, AttributeError):
            self.close()
            return Gone("ended", "returns what cannot be read")

    def _ended(self) -> Gone:
        self._process.join(timeout=1)
        code = self._process.exitcode
        self.close()
        return Gone("ended", f"ends the whole process (exit status {code})")
