"""Record a run with wandb from a separate thread, so that training never waits for it.

A failure is a single warning. Without a key or a network, the run is recorded offline in its folder.
"""

from __future__ import annotations

import math
import netrc
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from apa_cli.config.schema import WandbConfig
from apa_cli.secrets import redact, redact_text
from apa_cli.tracking.samples import Sample
from apa_cli.watched_thread import ABANDONED

RUN_ID_FILE = "run-id"  # for resuming, beside wandb's own files
LAST_STEP_FILE = "last-step"  # newest step given to wandb, so that a resumed run repeats none
TABLE_ROWS = 200  # newest responses in the table
SAMPLE_COLUMNS = ("iteration", "prompt", "response", "score", "kl", "evaluator")
INIT_SECONDS = 20.0
FINISH_SECONDS = 30.0
_ENVIRONMENT_MODES = {"offline": "offline", "dryrun": "offline", "disabled": "disabled"}  # others mean online
_DATA = "WANDB_DATA_DIR"
# Send nothing about the machine, its code and its packages, and print nothing.
_SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "disable_code": True,
    "save_code": False,
    "disable_job_creation": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
}


class WandbRun:
    """Every method returns at once, except `finish`, which waits for a limited time.

    wandb is imported and started at the first record, as it would compete with the loading of models for the processor.
    """

    def __init__(
        self,
        config: WandbConfig,
        run_dir: Path,
        *,
        run_config: Mapping[str, Any],
        resumed: bool,
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self._config, self._run_dir, self._run_config, self._resumed = config, run_dir, run_config, resumed
        self._note, self._warn = note, warn
        self._queue: queue.SimpleQueue[Callable[[Any], None] | int] = queue.SimpleQueue()  # an exit code comes last
        self._rows: deque[list[Any]] = deque(maxlen=TABLE_ROWS)
        self._failed = self._finished = False
        self._last_step = -1
        self.mode = "disabled" if config.mode == "disabled" else "starting"
        self._thread: threading.Thread | None = None

    def log(
        self, iteration: int, metrics: Mapping[str, float], samples: Sequence[Sample] = (), *, table: bool = False
    ) -> None:
        """Metrics at step `iteration`. table: also write the samples kept so far."""
        payload: dict[str, Any] = {k: float(v) for k, v in metrics.items() if v is not None and math.isfinite(v)}
        payload["iteration"] = iteration

        def send(run: Any) -> None:
            if iteration <= self._last_step:
                return
            if table and self._rows:
                import wandb

                payload["samples"] = wandb.Table(columns=list(SAMPLE_COLUMNS), data=list(self._rows))
            with _data_folder(self._run_dir / "wandb"):
                run.log(payload, step=iteration, commit=True)
            self._last_step = iteration
            with suppress(OSError):
                (self._run_dir / "wandb" / LAST_STEP_FILE).write_text(str(iteration), "utf-8")

        self.keep(iteration, samples)
        self._put(send)

    def keep(self, iteration: int, samples: Sequence[Sample]) -> None:
        """Keep samples for the next table."""
        rows = [[iteration, *(getattr(sample, name) for name in SAMPLE_COLUMNS[1:])] for sample in samples]
        if rows:
            self._put(lambda run: self._rows.extend(rows))

    def summarise(self, values: Mapping[str, float | None]) -> None:
        """Numbers for the whole run."""
        known = {name: value for name, value in values.items() if value is not None}
        self._put(lambda run: run.summary.update(known))

    def finish(self, exit_code: int = 0, *, seconds: float | None = None) -> None:
        """Send what is left. Gives up with a warning after `seconds`, by default the limits for start and end."""
        self._finished = True
        if self._thread is None:  # nothing was recorded
            return
        self._queue.put(exit_code)
        self._thread.join(INIT_SECONDS + FINISH_SECONDS + 10.0 if seconds is None else seconds)
        if self._thread.is_alive():
            self._thread.name = ABANDONED
            self._fail("did not finish in time")
        self._thread = None

    def _put(self, item: Callable[[Any], None]) -> None:
        if self.mode == "disabled" or self._finished:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
            self._thread.start()
        self._queue.put(item)

    def _work(self) -> None:
        run = self._try(self._start, "cannot start")
        if run is None:
            self.mode = "disabled"
        while not isinstance(item := self._queue.get(), int):
            if run is not None:
                self._try(partial(item, run), "does not take the metrics")
        if run is None:
            return
        began = time.monotonic()
        self._try(partial(run.finish, exit_code=item), "could not finish")
        if self.mode == "online" and time.monotonic() - began >= FINISH_SECONDS:
            self._fail(f"not everything is uploaded yet; later, `wandb sync {Path(run.dir).parent}`")
        if self._failed:  # its service may be gone, which would be a traceback at exit
            import wandb

            with suppress(BaseException):
                wandb.teardown()

    def _try(self, call: Callable[[], Any], problem: str) -> Any:
        """The result of `call`, or None if it fails. Warns of the first failure."""
        try:
            return call()
        except BaseException as error:  # a thread ignores SystemExit
            self._fail(f"{problem} ({_short(error)})")
            return None

    def _fail(self, problem: str) -> None:
        if not self._failed:
            self._failed = True
            self._warn(f"wandb: {problem}; metrics.jsonl is complete")

    def _start(self) -> Any:
        """The run, offline if it cannot be online, None if disabled."""
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported
        import wandb

        settings = wandb.setup(settings=self._settings(wandb)).settings
        keyed = has_key(settings.base_url, os.environ) or bool(settings.api_key)
        self.mode = choose_mode(self._config.mode, keyed=keyed, environment=os.environ)
        if self._config.mode == "online" and self.mode == "offline":
            self._warn("wandb: no key for online mode (set WANDB_API_KEY or run `wandb login`); recording offline")
        if self.mode == "online":
            try:
                return self._init(wandb)
            except BaseException as error:
                self._warn(f"wandb: cannot go online ({_short(error)}); recording offline")
                self.mode = "offline"
        return None if self.mode == "disabled" else self._init(wandb)

    def _init(self, wandb: Any) -> Any:
        online, folder = self.mode == "online", self._run_dir / "wandb"
        folder.mkdir(exist_ok=True)
        id_file, step_file = folder / RUN_ID_FILE, folder / LAST_STEP_FILE
        known = id_file.read_text("utf-8").strip() if self._resumed and id_file.exists() else None
        named = redact(self._config)
        run = wandb.init(
            mode=self.mode,
            dir=str(self._run_dir),
            project=named["project"],
            entity=named["entity"],
            group=named["group"],
            name=named["name"] or self._run_dir.name,
            tags=named["tags"],
            config=dict(self._run_config),
            id=known,
            resume="allow" if known and online else None,
            reinit="create_new",
            settings=self._settings(wandb),
        )
        id_file.write_text(run.id, "utf-8")
        if known == run.id:
            with suppress(OSError, ValueError):
                self._last_step = int(step_file.read_text("utf-8"))
        else:
            step_file.unlink(missing_ok=True)
        run.define_metric("iteration", hidden=True)
        run.define_metric("*", step_metric="iteration")
        later = f"offline; upload later with `wandb sync {Path(run.dir).parent}`"
        self._note(f"wandb: {run.url if online else later}")
        return run

    def _settings(self, wandb: Any) -> Any:
        """Our settings, without those that the installed wandb does not have."""
        wanted = {**_SETTINGS, "init_timeout": INIT_SECONDS, "finish_timeout": FINISH_SECONDS}
        return wandb.Settings(**{name: value for name, value in wanted.items() if name in wandb.Settings.model_fields})


def has_key(base_url: str, environment: Mapping[str, str]) -> bool:
    """Whether wandb finds credentials for the server without a prompt."""
    if environment.get("WANDB_API_KEY") or environment.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    named = environment.get("NETRC")
    for path in [named] if named else ["~/.netrc", "~/_netrc"]:
        with suppress(OSError, RuntimeError, netrc.NetrcParseError):
            entry = netrc.netrc(Path(path).expanduser()).authenticators(urlsplit(base_url).netloc)
            if entry and entry[2]:
                return True
    return False


def choose_mode(configured: str, *, keyed: bool, environment: Mapping[str, str]) -> str:
    """online, offline or disabled. `auto` follows WANDB_MODE. Online without a key becomes offline, as wandb would
    prompt for one.
    """
    variable = environment.get("WANDB_MODE", "").lower()
    mode = _ENVIRONMENT_MODES.get(variable, "online") if configured == "auto" else configured
    return "offline" if mode == "online" and not keyed else mode


@contextmanager
def _data_folder(folder: Path) -> Iterator[None]:
    """Keep wandb's copies of tables in the run's folder instead of the user's home."""
    ours = _DATA not in os.environ
    os.environ.setdefault(_DATA, str(folder))
    try:
        yield
    finally:
        if ours:
            os.environ.pop(_DATA, None)


def _short(error: BaseException) -> str:
    """The first line of an error, without secrets, as wandb quotes a refused key."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return redact_text(lines[0])[:160]
