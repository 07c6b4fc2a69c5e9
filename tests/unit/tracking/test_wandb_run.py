import json
import os
import sys
import threading
import time
import types

import pytest
from wandb_file import read_history, read_records, read_rows
from wandb_server import wandb_server

from apa_cli.config.schema import WandbConfig
from apa_cli.tracking import wandb_run
from apa_cli.tracking.samples import Sample
from apa_cli.tracking.wandb_run import WandbRun, choose_mode, has_key

SAMPLE = Sample(prompt="p", response="r", score=1.0, kl=0.5)


def start(run_dir, said, *, mode="offline", resumed=False):
    config = WandbConfig(mode=mode, project="tests", name="a-run", tags=["x"])
    return WandbRun(config, run_dir, run_config={"seed": 0}, resumed=resumed, note=said.append, warn=said.append)


@pytest.fixture
def fresh_wandb():
    """wandb reads the environment once in a process; this makes it read again, before and after."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


class FakeWandb:
    """As much of wandb as WandbRun uses; `broken` names what does `act()` instead of its work."""

    Settings = type("Settings", (), {"model_fields": {}, "__init__": lambda self, **_: None})

    def __init__(self, act=None, broken=""):
        self.act, self.broken, self.logged, self.finished, self.torn_down = act, broken, [], [], 0
        self.summary = {}
        self.id, self.dir, self.url = "an-id", "d/f", "u"

    def _maybe(self, name):
        if self.broken == name:
            self.act()

    def setup(self, **_):
        self._maybe("setup")
        return types.SimpleNamespace(settings=types.SimpleNamespace(base_url="https://api.wandb.ai", api_key=None))

    def init(self, **settings):
        self._maybe("init")
        self.settings = settings
        return self

    def define_metric(self, *args, **kwargs):
        pass

    def log(self, payload, step, commit):
        self._maybe("log")
        self.logged.append(step)

    def finish(self, exit_code):
        self._maybe("finish")
        self.finished.append(exit_code)

    def teardown(self):
        self.torn_down += 1


def test_what_is_logged_is_in_wandbs_own_file(tmp_path):
    said = []
    run = start(tmp_path, said)
    for iteration in range(4):
        metrics = {
            "reward/mean": iteration / 4,
            "kl/to_init": -iteration / 8,
            "policy/entropy": 2.5,
            "nan": float("nan"),
        }
        run.log(iteration, metrics, [SAMPLE], table=iteration == 2)
    run.summarise({"after/reward": 0.75, "after/evaluator": None})
    run.finish()
    names = ("iteration", "reward/mean", "kl/to_init", "policy/entropy")
    assert [[row[name] for name in names] for row in read_history(tmp_path)] == [
        [iteration, iteration / 4, -iteration / 8, 2.5] for iteration in range(4)
    ]
    rows = read_rows(tmp_path)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3]
    assert [("samples/path" in row) for row in rows] == [False, False, True, False]
    (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/samples_*.json")
    assert json.loads(table.read_text())["data"] == [[i, "p", "r", 1.0, 0.5, None] for i in range(3)]
    assert "nan" not in rows[0]
    assert len(said) == 1
    assert "wandb sync" in said[0]


def test_nothing_of_machine_code_or_packages_is_recorded(tmp_path):
    run = start(tmp_path, [])
    run.log(1, {"reward/mean": 1.0}, [SAMPLE], table=True)
    run.finish()
    kinds = {record.WhichOneof("record_type") for record in read_records(tmp_path)}
    assert not kinds & {"stats", "output", "output_raw", "environment"}
    names = {path.name for path in tmp_path.rglob("*")}
    assert not names & {"requirements.txt", "wandb-metadata.json", "diff.patch", "output.log"}
    (recorded,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    content = recorded.read_bytes()
    assert os.uname().nodename.encode() + b"\n" not in content
    assert sys.executable.encode() not in content


def test_without_a_network_an_online_run_is_recorded_offline(tmp_path, monkeypatch, fresh_wandb):
    key = "0123456789" * 4
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(wandb_run, "INIT_SECONDS", 1.0)
    said = []
    began = time.monotonic()
    run = start(tmp_path, said, mode="auto")
    run.log(1, {"reward/mean": 0.5})
    assert time.monotonic() - began < 0.5  # the training did not wait
    run.finish()
    assert run.mode == "offline"
    assert [line.split(";")[-1].strip() for line in said[:1]] == ["recording offline"]
    assert read_history(tmp_path) == [{"iteration": 1, "reward/mean": 0.5}]
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and key.encode() in p.read_bytes()]


def test_online_without_a_key_warns_and_never_asks(tmp_path, monkeypatch, fresh_wandb):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    monkeypatch.setattr("getpass.getpass", lambda *_: pytest.fail("asked"))
    said = []
    run = start(tmp_path, said, mode="online")
    run.log(1, {"reward/mean": 0.5})
    run.finish()
    assert run.mode == "offline"
    assert "no key" in said[0]


@pytest.mark.parametrize("mode", ["disabled", "offline"])
def test_nothing_to_record_starts_nothing(tmp_path, mode):
    before = threading.active_count()
    run = start(tmp_path, [], mode=mode)
    if mode == "disabled":
        run.log(1, {"reward/mean": 1.0}, [SAMPLE], table=True)
    assert threading.active_count() == before
    run.finish(1)
    run.log(1, {"reward/mean": 1.0})  # too late to count
    assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("configured", "keyed", "variable", "expected"),
    [
        ("auto", True, None, "online"),
        ("auto", False, None, "offline"),
        ("auto", True, "offline", "offline"),
        ("auto", True, "disabled", "disabled"),
        ("auto", False, "online", "offline"),
        ("auto", True, "nonsense", "online"),
        ("online", True, "offline", "online"),
        ("online", False, None, "offline"),
        ("offline", True, "online", "offline"),
    ],
)
def test_which_mode(configured, keyed, variable, expected):
    environment = {} if variable is None else {"WANDB_MODE": variable}
    assert choose_mode(configured, keyed=keyed, environment=environment) == expected


def test_where_a_key_may_be(tmp_path):
    url = "https://api.wandb.ai"
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password k\n")
    netrc.chmod(0o600)
    assert has_key(url, {"WANDB_API_KEY": "k", "NETRC": "nowhere"})
    assert has_key(url, {"NETRC": str(netrc)})
    assert not has_key("https://wandb.example.org", {"NETRC": str(netrc)})
    assert not has_key(url, {"NETRC": str(tmp_path / "none")})
    netrc.write_text("not a netrc file {")
    assert not has_key(url, {"NETRC": str(netrc)})


@pytest.mark.parametrize("broken", ["setup", "init", "log", "finish"])
@pytest.mark.parametrize("kind", [SystemExit, MemoryError])
def test_whatever_is_raised_there_costs_one_warning(tmp_path, monkeypatch, broken, kind):
    def fail():
        raise kind("from wandb")

    fake = FakeWandb(fail, broken)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    said = []
    run = start(tmp_path, said)
    for iteration in range(3):
        run.log(iteration, {"reward/mean": 1.0})
    began = time.monotonic()
    run.finish(3)
    assert time.monotonic() - began < 5
    assert len([line for line in said if "from wandb" in line]) == 1
    if broken == "log":
        assert fake.finished == [3]
    if broken in ("log", "finish"):
        assert fake.torn_down == 1  # a dead service would otherwise print a traceback as Python exits


@pytest.mark.parametrize("broken", ["setup", "init", "log"])
def test_training_does_not_wait_for_a_wandb_that_hangs(tmp_path, monkeypatch, broken):
    gate = threading.Event()
    fake = FakeWandb(gate.wait, broken)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    run = start(tmp_path, [])
    began = time.monotonic()
    for iteration in range(1000):
        run.log(iteration, {"reward/mean": 1.0}, [SAMPLE])
    assert time.monotonic() - began < 5
    gate.set()  # and when it goes on, it gets all of them, in order
    run.finish(seconds=20)
    assert fake.logged == list(range(1000))
    assert fake.finished == [0]


def test_a_finish_that_hangs_leaves_a_thread_that_the_command_knows_to_leave_behind(tmp_path, monkeypatch):
    from apa_cli.watched_thread import any_abandoned

    gate = threading.Event()
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb(gate.wait, "finish"))
    said = []
    run = start(tmp_path, said)
    run.log(1, {"reward/mean": 1.0})
    thread, began = run._thread, time.monotonic()
    run.finish(seconds=0.2)
    assert time.monotonic() - began < 2
    assert "did not finish in time" in said[-1]
    assert any_abandoned()
    gate.set()
    thread.join(10)
    assert not thread.is_alive()  # any_abandoned() would speak of other tests' threads too


def test_a_run_that_goes_on_keeps_its_id_and_repeats_no_step(tmp_path):
    """Killed after 4, taken up from a checkpoint of 2."""
    for resumed, iterations in ((False, (1, 2, 3, 4)), (True, (3, 4, 5, 6))):
        run = start(tmp_path, [], resumed=resumed)
        for iteration in iterations:
            run.log(iteration, {"reward/mean": iteration / 4})
        run.finish()
        time.sleep(1.1 if not resumed else 0)  # wandb names its folders by the second
    assert [row["iteration"] for row in read_history(tmp_path)] == [1, 2, 3, 4, 5, 6]
    ids = {record.run.run_id for record in read_records(tmp_path) if record.WhichOneof("record_type") == "run"}
    assert ids == {(tmp_path / "wandb" / "run-id").read_text()}


def test_a_new_run_in_the_folder_begins_its_own_steps(tmp_path, monkeypatch):
    fakes = [FakeWandb(), FakeWandb()]
    for fake in fakes:
        monkeypatch.setitem(sys.modules, "wandb", fake)
        run = start(tmp_path, [], resumed=False)
        for iteration in (1, 2):
            run.log(iteration, {"reward/mean": 1.0})
        run.finish()
    assert [fake.logged for fake in fakes] == [[1, 2], [1, 2]]


@pytest.mark.parametrize("answer", [429, "hang"])
def test_a_server_that_does_not_let_the_run_begin(tmp_path, monkeypatch, fresh_wandb, answer, capfd):
    with wandb_server(graphql=answer) as server:
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        said = []
        monkeypatch.setattr(wandb_run, "INIT_SECONDS", 2.0)
        run = start(tmp_path, said, mode="online")
        began = time.monotonic()
        run.log(1, {"reward/mean": 0.5})
        assert time.monotonic() - began < 0.5
        run.finish()
        assert time.monotonic() - began < 20
        assert server.paths() == {"/graphql"}  # no telemetry, no reports of errors
    assert "recording offline" in said[0]
    assert read_history(tmp_path) == [{"iteration": 1, "reward/mean": 0.5}]
    assert capfd.readouterr() == ("", "")
