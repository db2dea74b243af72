"""Log lines are JSON, and quote nothing by default."""

from __future__ import annotations

import json
import logging
import sys

from solon.serving.logs import JsonFormatter, cause


def failed() -> BaseException:
    try:
        try:
            raise KeyError("my secret")
        except KeyError as error:
            raise RuntimeError("also my secret") from error
    except RuntimeError as error:
        return error


def test_a_line_is_one_json_object_whatever_the_text() -> None:
    record = logging.makeLogRecord(
        {"name": "solon.x", "levelname": "INFO", "msg": "two\nlines", "fields": {"seconds": 0.5}}
    )
    line = JsonFormatter().format(record)
    assert "\n" not in line
    read = json.loads(line)
    assert read.pop("time").endswith("+00:00")
    assert read == {
        "level": "INFO",
        "logger": "solon.x",
        "event": "two\nlines",
        "seconds": 0.5,
    }


def test_a_cause_names_types_and_frames_but_not_messages() -> None:
    fields = cause(failed(), verbose=False)
    assert fields["exceptions"] == ["builtins.RuntimeError", "builtins.KeyError"]
    assert "secret" not in json.dumps(fields)
    assert sys._getframe().f_code.co_filename in json.dumps(fields)


def test_messages_are_shown_where_they_are_asked_for() -> None:
    assert cause(failed(), verbose=True)["messages"] == ["also my secret", "'my secret'"]
