"""The judge's address: the configured one, or that of a server that lives as long as it is asked.

A served judge prints its address as first line of its standard output, and leaves when its standard input closes. We
hold the other end of that pipe: however we end, kill -9 included, it closes, and the server does not outlive us.
"""

from __future__ import annotations

import os
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from pydantic import ValidationError

from vrm.config import ConfigError, JudgeConfig
from vrm.judging.client import JudgeError
from vrm.judging.transport import HIDDEN
from vrm.warm import Child, start_child

Server = subprocess.Popen[bytes] | Child

START = 60.0
"""Seconds until a served judge must have printed its address."""

GRACE = 15.0
"""Seconds that it has to leave once its standard input is closed."""

TAIL = 2000
"""Characters of its error output that an error message shows."""


@contextmanager
def endpoint(config: JudgeConfig) -> Iterator[JudgeConfig]:
    """The judge with `base_url` set, which stands for as long as the context lasts.

    A served one keeps its `serve`, which is part of its requests' keys; the address, with another port each time, is
    not.

    Args:
        config: with `base_url`, which is given back as it is, or `serve`, a command that is started and stopped here.

    Raises:
        ConfigError: the command can't be started, ends early, or prints no address in time.
        JudgeError: it ended while it was asked.
    """
    if config.serve is None:
        yield config
        return
    with tempfile.TemporaryFile() as errors:
        server = _start(config, errors)
        try:
            reachable = _await_address(config, server, errors)
            try:
                yield reachable
            except JudgeError as error:
                status = server.poll()
                if status is None:
                    raise
                ended = f"judge.serve has ended with status {status}:{_tail(errors, config)}"
                raise JudgeError(f"{error} {ended}") from None
        finally:
            _stop(server)


def _start(config: JudgeConfig, errors: IO[bytes]) -> Server:
    # it gets the key with each request, and has no business with it otherwise
    environment = {name: value for name, value in os.environ.items() if name != config.api_key_env}
    try:
        program, *arguments = shlex.split(config.serve)
        is_module = program == "python" and arguments[:1] == ["-m"]
        # a session of its own: Ctrl-C at the terminal must not stop it before what is under way has come in
        return start_child(
            [sys.executable if program == "python" else program, *arguments],
            *((arguments[1], arguments[2:]) if is_module and arguments[1:] else (None,)),
            environment=environment,
            stderr=errors,
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"judge.serve: `{config.serve}` can't be started ({error})") from None


def _await_address(config: JudgeConfig, server: Server, errors: IO[bytes]) -> JudgeConfig:
    """The configuration with the address that the server prints."""
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_on, args=(server.stdout, lines), daemon=True).start()
    try:
        line = lines.get(timeout=START).decode(errors="replace").strip()
    except queue.Empty:
        raise ConfigError(
            f"judge.serve: `{config.serve}` printed no address within {START:g} s:{_tail(errors, config)}"
        ) from None
    if not line:
        with suppress(subprocess.TimeoutExpired):
            server.wait(1)  # its last words are in `errors` then
        raise ConfigError(f"judge.serve: `{config.serve}` ended without an address:{_tail(errors, config)}")
    try:
        address = JudgeConfig(model=config.model, base_url=line).base_url
    except ValidationError:
        raise ConfigError(
            f"judge.serve: the first line that `{config.serve}` prints has to be its address, up to and without "
            f"/chat/completions; it is {line[:200]!r}"
        ) from None
    return config.model_copy(update={"base_url": address})


def _read_on(output: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Pass on the first line (empty: there is none); read on, or the server would wait for us at a full pipe."""
    with output:
        lines.put(output.readline())
        while output.read(65536):
            pass


def _stop(server: Server) -> None:
    """Close its standard input and wait; whoever is still there then, of all that it started, is killed."""
    with suppress(OSError):
        server.stdin.close()
    try:
        server.wait(GRACE)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _tail(errors: IO[bytes], config: JudgeConfig) -> str:
    """The end of its error output; it may have logged requests, and with them the key."""
    errors.seek(0)
    text = errors.read().decode(errors="replace").strip()
    if key := os.environ.get(config.api_key_env or ""):
        text = text.replace(key, HIDDEN)
    return f" {text[-TAIL:]}" if text else " (it printed no error)"
