"""The field's usual ways to take requests and to end sessions on time, in a few lines each, for comparison."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from benchmarks.load.stack import Stack, is_ready, stop, wait_for
from dev.embedded import free_port, guarded

_NODE = Path(__file__).parent / "node"
_START_SECONDS = 30


def node(script: str) -> list[str]:
    """Return the command that runs a script with Node, whose packages are installed if they are not."""
    if not (_NODE / "node_modules").exists():
        subprocess.run(
            ["npm", "install", "--no-save", "--no-fund", "--no-audit"], cwd=_NODE, check=True, capture_output=True
        )
    return ["node", str(_NODE / script)]


@contextlib.contextmanager
def express(stack: Stack) -> Iterator[Stack]:
    """Serve the four requests with Express on a stack that has no processes of the Procfile's, and yield it so."""
    port = free_port()
    process = guarded(node("serve.js"), signal.SIGTERM, env={**stack.environment, "PORT": str(port)})
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: is_ready(url), _START_SECONDS)
        yield replace(stack, url=url, pids={**stack.pids, "service": [process.pid]})
    finally:
        stop(process)
