"""The log of the services: lines to stderr, events to the journal with their fields."""

from __future__ import annotations

import logging
import os
from typing import TextIO

from standfast.events import journal
from standfast.system.lines import lines_of


class _JournalFormatter(logging.Formatter):
    """Lines with the priority that journald reads, when it is journald that reads them."""

    _PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4),
                   (logging.INFO, 6), (logging.NOTSET, 7))  # fmt: skip

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        priority = next(number for least, number in self._PRIORITIES if record.levelno >= least)
        return "\n".join(f"<{priority}>{line}" for line in lines_of(text) or [""])


class _LogHandler(logging.StreamHandler[TextIO]):
    """Lines to stderr. An event goes to the journal with its fields, and when stderr ends up there
    anyway, nowhere else."""

    def emit(self, record: logging.LogRecord) -> None:
        event = getattr(record, "event", None)
        if event is not None and journal.deliver(event) and journal.is_stderr():
            return
        super().emit(record)


def set_up_log() -> None:
    """Sends the log to stderr; debug with STANDFAST_DEBUG=1."""
    handler = _LogHandler()
    if os.environ.get("JOURNAL_STREAM"):
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logging.DEBUG if os.environ.get("STANDFAST_DEBUG") == "1" else logging.INFO
    logging.basicConfig(level=level, handlers=[handler])
    for chatty in ("sh", "urllib3", "standfast_consul_base"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
