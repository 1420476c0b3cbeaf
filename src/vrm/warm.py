"""A warm interpreter for local runs: torch and transformers are imported once, and every job is a fork of that process.

    snakemake (onstart) -- starts --> server, which imports, accepts and forks
        shell: python -m vrm score ... -- command, environment, standard streams --> supervisor -- forks --> the job

* `python -m vrm` is a job's client where VRM_WARM names a server's socket. It sends what it was given, passes signals
  on, and ends as the job ends: with its exit code, or by the same signal. A job whose client is gone is killed.
* The job runs `main()` as the plain command does, with its own log, directory, umask, environment and number of
  threads. Whatever else a process inherits (packages, variables that libraries read when they are imported, limits,
  niceness, cgroup) has to be the server's own, and our sources have to be what the server started with. Otherwise, and
  where there is no server, the command runs plainly.
* What a job itself starts is plain, but for modules of ours that it starts with `start_child`: those are forks of the
  server, too, each in a session of its own. They outlive the job if they want to, as they would as processes.
* The server has one thread when it forks. What models need it imports when the first job with a model comes, or before,
  while it has nothing else to do, once a job has changed data: models will be trained on them.
* It lives as long as the process that it was started for, and then until its last job has ended. The kernel sees to
  all of that, so that SIGKILL, of whomever, leaves nobody behind.

Linux only. `VRM_WARM=off` in Snakemake's environment switches it off. Snakemake's `benchmark:` files measure the
client, but for the time on the clock; the server's log has every job's processor time and memory.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NoReturn

from vrm.watch import plain_libraries

if TYPE_CHECKING:
    import subprocess

CLIENT, SERVER = "VRM_WARM", "VRM_WARM_SERVER"
"""Environment variables: the socket that commands are sent to; what makes `python -m vrm` a server."""

TAKEN, REFUSED = b"+", b"-"
THREADS = ("OMP_NUM_THREADS", "GOTO_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
FREE = {*THREADS, "VECLIB_MAXIMUM_THREADS", "TMPDIR", "TMP", "TEMP", "TEMPDIR", "PWD", "OLDPWD", "SHLVL", "PS1", "_"}
"""Variables that may differ from job to job, beside those of ours: no import depends on them."""

FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)

TABLES = (
    *("vrm.cli", "vrm.data.scored", "vrm.data.pairs", "vrm.judged.stages", "vrm.reporting.registry", "vrm.provenance"),
    *("vrm.world.write", "vrm.world.evaluation_sets", "pandas.io.formats.csvs", "pandas.core.reshape.reshape"),
)
MODELS = (
    *("vrm.training.reward", "vrm.training.preference", "vrm.training.ppo", "trl.trainer.sft_trainer"),
    *("vrm.training.backbones", "vrm.evaluation.bound", "vrm.evaluation.score_sets", "vrm.training.rollout"),
    *("vrm.generation.answers", "vrm.models.policy_scoring", "vrm.models.scoring", "vrm.training.policies"),
    *("transformers.models.qwen2.modeling_qwen2", "transformers.models.qwen3.modeling_qwen3"),
    *("vrm.training.selective", "vrm.evaluation.study", "torch.profiler._cupti_monitor", "tabulate"),
)
DRAWING = (
    *("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_pdf", "PIL.JpegImagePlugin"),
    *("PIL.GifImagePlugin", "PIL.PngImagePlugin", "pyarrow.pandas_compat"),
)
"""What is imported before the first job, before the first one with a model, and before the first figure.

Before the first job that is about AlpacaEval, its package is, which takes in scipy, scikit-learn and half a thousand
modules.
"""

DATA = ("world", "read-scored", "make-pairs", "normalise")
"""Commands that are followed by some with models."""

servers = []
"""Servers that this process has started."""


_is_fork = False
"""Whether this process is a fork of a server's."""
_given: dict[str, Any] = {}
"""What this process was given by its client, where it is a server's job."""


def start(exports: Mapping[str, str], log: Path) -> None:
    """Start a server that ends with this process, and have child processes use it.

    Args:
        exports: variables that jobs get beside those of this process.
        log: gets the server's errors, and a line a job.
    """
    import subprocess
    import tempfile

    if sys.platform != "linux" or CLIENT in os.environ:  # switched off, or a run inside of another one
        return
    address = Path(tempfile.mkdtemp(prefix="vrm-")) / "socket"  # 0700: nobody else may send a command
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(address))
    except OSError:  # a name of more than 107 bytes, or a file system without sockets
        address.parent.rmdir()
        return
    listener.listen(128)  # here, so that the first job may come before the server is ready
    log.parent.mkdir(parents=True, exist_ok=True)
    settings = {SERVER: json.dumps([str(address), listener.fileno(), os.getpid()]), **dict.fromkeys(THREADS, "1")}
    with log.open("a") as output, listener:
        servers.append(
            subprocess.Popen(
                [sys.executable, "-m", "vrm"],
                env={**os.environ, **exports, **settings},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=[listener.fileno()],
                start_new_session=True,  # Ctrl-C at the terminal reaches the clients, which pass it on
            )
        )
    os.environ[CLIENT] = str(address)


def enter() -> None:
    """What `python -m vrm` does first; returns where the command is to be run here: plainly, or in a server's job."""
    if SERVER in os.environ:
        address, listener, parent = json.loads(os.environ.pop(SERVER))
        module = _serve(Path(address), socket.socket(fileno=listener), parent)
        if module:
            leave(sys.modules[module].main())
    elif os.environ.get(CLIENT, "off") != "off" and "RANK" not in os.environ:
        _hand_over(os.environ[CLIENT])


def leave(code: int | None) -> NoReturn:
    """End with this exit code as Python does; but a fork leaves its modules standing, or it would copy all of them."""
    if _is_fork:
        import atexit
        import ctypes
        import threading

        threading._shutdown()
        atexit._run_exitfuncs()
        with suppress(OSError, ValueError):  # a full disk, which Python's own end then speaks of
            sys.stdout.flush()
            sys.stderr.flush()
            ctypes.CDLL(None).fflush(None)
            os._exit(code or 0)
    raise SystemExit(code)


def _inherited() -> dict[str, Any]:
    """What a process has from the one that started it, and a job can't be given by its client."""
    import resource

    limits = sorted(name for name in dir(resource) if name.startswith("RLIMIT_"))
    return {
        "python": [sys.version, os.path.realpath(sys.prefix), *sys.flags],
        "environment": {k: v for k, v in os.environ.items() if k not in FREE and not k.startswith("VRM_")},
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "processors": sorted(os.sched_getaffinity(0)),
        "limits": [list(resource.getrlimit(getattr(resource, name))) for name in limits],
        "ignored": [number for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN],
        "group": Path("/proc/self/cgroup").read_text(),
        "user": [os.getuid(), os.getgid(), *sorted(os.getgroups())],
    }


# ---- the client ----


def _hand_over(address: str) -> None:
    """Have the server run this process's command, and end as it ends; returns where the server does not."""
    from vrm import alive

    alive.join()  # now: the job itself does so as soon as it runs
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(address)
        _send(connection, _message(sys.argv, os.environ) | {"inherited": _inherited()}, [0, 1, 2])
        if connection.recv(1) != TAKEN:
            return
    except OSError:
        return
    end = _forward(connection)
    code = int.from_bytes(end, signed=True) if end else -signal.SIGKILL  # whoever should say how it ended was killed
    if code >= 0:
        os._exit(code)
    if code != -signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)


def _message(arguments: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """What the server is told of a job, beside what the job inherits."""
    umask = os.umask(0)
    os.umask(umask)
    return {
        "arguments": list(arguments),
        "path": sys.path,
        "directory": os.getcwd(),
        "umask": umask,
        "environment": dict(environment),
    }


def _send(connection: socket.socket, job: Mapping[str, Any], streams: Sequence[int]) -> None:
    text = json.dumps(job).encode()
    socket.send_fds(connection, [len(text).to_bytes(4)], streams)
    connection.sendall(text)


def _forward(connection: socket.socket) -> bytes:
    """Pass signals on until the job has ended; what is said of its end, or nothing where nobody is left to say it.

    Through a file descriptor, which the C handler writes to: a Python handler of a signal that comes right before a
    blocking call runs when that call has returned.
    """
    import select

    woken, waker = socket.socketpair()
    waker.setblocking(False)
    signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
    for number in FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    try:
        while connection not in select.select([connection, woken], [], [])[0]:
            connection.send(woken.recv(16))
        return connection.recv(4)
    except OSError:
        return b""


# ---- what a job starts ----


class Child:
    """A fork of the server that runs a module for this job; of `subprocess.Popen`, what its users here need."""

    def __init__(self, connection: socket.socket, pid: int, pipes: Sequence[IO[bytes] | None]) -> None:
        self._connection, self.pid, self.returncode = connection, pid, None
        self.stdin, self.stdout, self.stderr = pipes

    def poll(self) -> int | None:
        """Its exit status; None: it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        import subprocess

        if self._look(timeout) is None:
            raise subprocess.TimeoutExpired(["fork", str(self.pid)], timeout)
        return self.returncode

    def _look(self, timeout: float | None) -> int | None:
        import select

        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            try:
                end = self._connection.recv(4)
            except OSError:
                end = b""
            self.returncode = int.from_bytes(end, signed=True) if end else -signal.SIGKILL
        return self.returncode

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Close our ends of its pipes and wait for it; after Ctrl-C a moment, as `subprocess.Popen` does."""
        for pipe in (self.stdout, self.stderr, self.stdin):
            with suppress(BrokenPipeError):
                if pipe:
                    pipe.close()
        self._look(0.25 if kind is KeyboardInterrupt else None)
        self._connection.close()


def start_child(
    command: Sequence[str],
    module: str | None,
    arguments: Sequence[str] = (),
    *,
    environment: Mapping[str, str] | None = None,
    stderr: IO[bytes] | int = -1,
) -> subprocess.Popen[bytes] | Child:
    """Start a process in a session of its own, with pipes for its standard input and output.

    It learns by the end of its standard input that we are gone; nothing else ends it.

    Args:
        command: what to start.
        module: in a server's job, a fork of the server that calls this module's `main` takes the command's place, where
            the module is one of ours; None: never.
        arguments: the command line that this module reads.
        environment: all its variables; None: ours.
        stderr: where its errors go, as `subprocess.Popen` has it; -1 is a pipe.

    Raises:
        OSError: the command can't be started.
    """
    import subprocess

    environment = dict(os.environ) if environment is None else dict(environment)
    if _given and module and module.startswith("vrm."):
        child = _fork_of_the_server(module, arguments, environment, stderr)
        if child:
            return child
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
    return subprocess.Popen(list(command), env=environment, start_new_session=True, **pipes)


def _fork_of_the_server(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], stderr: IO[bytes] | int
) -> Child | None:
    """None: the server is gone, or does not take it."""
    job = _message([module, *arguments], environment)
    job |= {"module": module, "inherited": _given["inherited"]}  # which the server has found to be its own
    theirs, ours = zip(*(_pipe(reads) for reads in (True, False, False)), strict=True)
    if stderr != -1:
        ours[2].close()
        ours = (*ours[:2], None)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(_given["environment"][CLIENT])
        _send(connection, job, [*theirs[:2], theirs[2] if stderr == -1 else stderr.fileno()])
        pid = int.from_bytes(connection.recv(4)) if connection.recv(1) == TAKEN else 0
    except OSError:
        pid = 0
    for descriptor in theirs:
        os.close(descriptor)
    if pid:
        return Child(connection, pid, ours)
    for pipe in (*ours, connection):
        if pipe:
            pipe.close()
    return None


def _pipe(reads: bool) -> tuple[int, IO[bytes]]:
    """The child's end of a pipe, which it reads from or writes to, and ours."""
    reader, writer = os.pipe()
    return (reader, open(writer, "wb")) if reads else (writer, open(reader, "rb"))


# ---- the server ----


def _log(line: Mapping[str, object]) -> None:
    """Write a line of the log at once: where output is unbuffered, `print` writes its end later than its text, and the
    lines of two jobs that end together become one."""
    os.write(sys.stdout.fileno(), (json.dumps(line) + "\n").encode())


def _serve(address: Path, listener: socket.socket, parent: int) -> str | None:
    """Accept commands until `parent` is gone; returns in a job alone, which then is like a fresh `python -m vrm`.

    Returns:
        The module whose `main` is to be run instead of ours, for what a job has started.
    """
    import ctypes  # noqa: F401  here, as every fork needs it
    import select
    import time

    own = _inherited(), _sources()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # as `main` does, before anything is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    plain_libraries()
    alive = os.pidfd_open(parent)
    supervisors: set[int] = set()
    ahead: list[str] = []  # modules that will be needed
    while True:
        ready, _, _ = select.select([listener, alive], [], [], 0.0 if ahead else 1.0)
        while supervisors and (ended := os.waitpid(-1, os.WNOHANG)[0]):
            supervisors.discard(ended)
        if alive in ready:
            break
        if listener not in ready:
            if ahead:
                _import_early(ahead)
            continue
        connection, _ = listener.accept()
        streams: list[int] = []
        try:
            job = _receive(connection, streams)
            fits = _fits(job, *own)
            pid = os.fork() if fits else None
            if not fits:
                connection.send(REFUSED)
        except (OSError, ValueError) as error:  # the client is gone, or there is no memory for a fork
            print(f"warm: {error!r}", file=sys.stderr, flush=True)
            pid = None
        if pid == 0:
            listener.close()
            os.close(alive)
            _supervise(connection, job, streams)
            return job.get("module")
        if pid:
            supervisors.add(pid)
            if (*job["arguments"], "", "")[1] in DATA and "torch" not in sys.modules:
                ahead = ["numpy", "torch", "transformers", *MODELS]
        connection.close()
        for stream in streams:
            os.close(stream)
    listener.close()  # whoever waits there runs plainly
    address.unlink(missing_ok=True)
    address.parent.rmdir()
    for pid in supervisors:
        os.waitpid(pid, 0)
    _log({"server": round(time.process_time(), 2)})
    os._exit(0)


def _fits(job: Mapping[str, Any], inherited: Mapping[str, Any], sources: list[tuple[str, int, int]]) -> bool:
    """Whether a fork of this process would be what the client is; imports what the command needs."""
    import gc
    import importlib

    differs = [name for name, value in inherited.items() if job["inherited"].get(name) != value]
    differs += [] if THREADS[0] in job["environment"] else [THREADS[0]]
    differs += [] if _sources() == sources else ["sources"]
    if differs:
        _log({"plain": job["arguments"][1:2], "differs": differs})
        return False
    for name in TABLES:
        importlib.import_module(name)
    sys.modules["vrm.cli"].parser()
    command = sys.modules["vrm.cli"].COMMANDS.get((*job["arguments"], "", "")[1])
    is_figure = command is not None and command.name == "figure"
    for name in (*(MODELS if command and command.models else ()), *(DRAWING if is_figure else ())):
        importlib.import_module(name)
    if command and command.models:
        # transformers makes its rules of reading checkpoints when it reads the first one: 0.1 s of every job
        importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("")
    if "alpaca_eval" in job["arguments"] and command and command.name in ("judge", "judged-scores"):
        with sys.modules["vrm.judged.alpaca_eval"].package():  # which undoes what that import does to a process
            pass
    if "module" in job and not _has_main(job["module"]):
        return False
    gc.freeze()  # or the first collection in every job copies all of it
    return _threads() == 1  # any other would be missing in the fork


def _import_early(modules: list[str]) -> None:
    """Import the first of some modules that no job has asked for yet; where that fails, a job will say so."""
    import importlib

    try:
        importlib.import_module(modules.pop(0))
    except Exception:
        modules.clear()


def _has_main(module: str) -> bool:
    """Import a module of ours; whether it can be run. Whoever asks for one that can't is told so by a plain process."""
    import importlib

    try:
        return callable(getattr(importlib.import_module(module), "main", None))
    except ImportError:
        return False


def _sources() -> list[tuple[str, int, int]]:
    """Our files as they are now: a server must not run what stands there no longer."""
    files = sorted(Path(__file__).parent.rglob("*.py"))
    return [(str(path), (facts := path.stat()).st_mtime_ns, facts.st_size) for path in files]


def _threads() -> int:
    """Threads of this process; pyarrow's allocator sees to its own in a fork."""
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()]
    return len(names) - names.count("jemalloc_bg_thd")


def _receive(connection: socket.socket, streams: list[int]) -> dict[str, Any]:
    """A command; its three standard streams are added to `streams`.

    Raises:
        OSError, ValueError: there is no whole one.
    """
    connection.settimeout(10)
    head, received, _, _ = socket.recv_fds(connection, 4, 3)
    streams += received
    size, text = int.from_bytes(head), bytearray()
    while len(text) < size and (part := connection.recv(size - len(text))):
        text += part
    connection.settimeout(None)
    return json.loads(text)


def _supervise(connection: socket.socket, job: Mapping[str, Any], streams: list[int]) -> None:
    """Fork the job, pass signals to it, and tell the client how it ended; returns in the job alone.

    What a job has started ends by itself, whoever is killed.
    """
    import select
    import time

    is_child = "module" in job
    separate = os.setsid if is_child else _die_with_parent
    separate()
    began = time.monotonic()
    connection.send(TAKEN)
    pid = os.fork()
    if pid == 0:
        separate()
        connection.close()
        return _become(job, streams)
    if is_child:
        connection.send(pid.to_bytes(4))
    for stream in streams:  # a reader of a pipe must see its end when the job closes it
        os.close(stream)
    ended = os.pidfd_open(pid)
    while ended not in select.select([connection, ended], [], [])[0]:
        try:
            numbers = connection.recv(16)
        except ConnectionError:  # a client that is killed may leave a reset instead of an end
            numbers = b""
        for number in numbers or ([] if is_child else [signal.SIGKILL]):
            os.kill(pid, number)
        if not numbers:
            break
    _, status, used = os.wait4(pid, 0)
    line = {
        **({"child": job["module"]} if is_child else {"job": job["arguments"][1:]}),
        "seconds": round(time.monotonic() - began, 2),
        "processor_seconds": round(used.ru_utime + used.ru_stime, 2),
        "max_rss_mib": used.ru_maxrss // 1024,
    }
    _log(line)
    try:
        connection.send(os.waitstatus_to_exitcode(status).to_bytes(4, signed=True))
    finally:
        os._exit(0)


def _die_with_parent() -> None:
    """Ask the kernel for SIGKILL when the process that forked this one is gone."""
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _become(job: Mapping[str, Any], streams: list[int]) -> None:
    """Be the process that the client would be without a server."""
    global _is_fork
    _is_fork = True
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(job["directory"])
    os.umask(job["umask"])
    sys.argv[:], sys.path[:] = job["arguments"], job["path"]
    os.environ.clear()
    os.environ.update(job["environment"])
    if os.environ.pop(CLIENT, None):  # what the job starts itself is plain, but for its children
        _given.update(job)
    threads = int(os.environ[THREADS[0]])
    if threads > 1:  # libraries that are loaded have read 1; what is loaded later reads the environment
        from threadpoolctl import threadpool_limits

        threadpool_limits(threads)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator does that by itself after a fork
    if "tempfile" in sys.modules:
        sys.modules["tempfile"].tempdir = None
