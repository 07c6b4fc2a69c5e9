import logging
import warnings

import pytest

from apa_cli.tracking.log import LIBRARIES, LOGGER, WARNINGS, open_run_log

LOG = logging.getLogger(LOGGER)


class Heard(logging.Handler):
    def __init__(self):
        super().__init__()
        self.messages = []

    def emit(self, record):
        self.messages.append((record.name, record.getMessage()))


def states():
    loggers = [logging.getLogger(name) for name in (LOGGER, *LIBRARIES, WARNINGS)]
    return [(list(logger.handlers), logger.propagate, logger.level) for logger in loggers]


def test_messages_reach_file_and_terminal(tmp_path):
    heard = Heard()
    with open_run_log(tmp_path, heard):
        LOG.info("hello")
        logging.getLogger("apa_cli.models").warning("careful")
        logging.getLogger("transformers").warning("from a library")
        logging.getLogger("transformers").info("chatter")
    assert [message for _, message in heard.messages] == ["hello", "careful", "from a library"]
    text = (tmp_path / "run.log").read_text()
    assert all(
        message in text for message in ("hello", "WARNING apa_cli.models: careful", "transformers: from a library")
    )
    assert "\x1b" not in text


def test_python_warnings_go_to_the_file_only(tmp_path):
    heard = Heard()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with open_run_log(tmp_path, heard):
            warnings.warn("deprecated thing", stacklevel=1)
    assert heard.messages == []
    assert "deprecated thing" in (tmp_path / "run.log").read_text()


def test_everything_is_as_before_after_many_runs(tmp_path):
    before = states()
    for _ in range(3):
        with open_run_log(tmp_path, Heard()):
            pass
    with pytest.raises(KeyboardInterrupt), open_run_log(tmp_path, Heard()):
        raise KeyboardInterrupt
    assert states() == before


def test_a_resumed_run_appends(tmp_path):
    for word in ("first", "second"):
        with open_run_log(tmp_path):
            LOG.info(word)
    assert [line.split()[-1] for line in (tmp_path / "run.log").read_text().splitlines()] == ["first", "second"]
