"""What runs in each worker of the API beside the requests: its heartbeat, and the watch on the database."""

import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from flask import Flask

from afterhours_service.server.application import Application
from afterhours_service.stores import watch

HUNG_SECONDS = 30  # a worker that stands still, or a request that runs, for so long is ended
BEAT_SECONDS = 1
STOP_SECONDS = 7  # for requests in progress after SIGTERM, so that all has ended within eight seconds


def load(create_app: Callable[[], Flask], folder: Path, master: int) -> Application:
    """Return the application of a new worker, whose heart beats in a file of `folder`. master: a process id."""
    faulthandler.register(signal.SIGUSR1)  # works even when the interpreter does not; tells places in code only
    atexit.register(_leave)
    app = create_app()
    watch.start(app)
    application = Application(app)
    threading.Thread(target=_beat, args=(application, folder / str(os.getpid()), master), daemon=True).start()
    return application


def _leave() -> None:
    """End at once: where an interpreter that ends would end the threads that are left, granian's abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _beat(application: Application, path: Path, master: int) -> None:
    """Set the file's time to when the longest of the running requests began, on the monotonic clock, or to now.

    End this worker when the master is gone.
    """
    path.touch()
    while os.getppid() == master:
        with contextlib.suppress(OSError):
            oldest = application.oldest()
            os.utime(path, (oldest, oldest))
        time.sleep(BEAT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(STOP_SECONDS)
    os._exit(1)  # a client that does not send the rest of its request would keep it, and its port
