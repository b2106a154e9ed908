"""JupyterLab as `make lab` starts it: its question about news does not cover the first sentence."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SETTING = "@jupyterlab/apputils-extension:notification"


def test_the_question_about_news_is_answered(tmp_path):
    pytest.importorskip("jupyterlab")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith("JUPYTER")}
    clean |= {"HOME": str(tmp_path), "JUPYTER_CONFIG_PATH": str(ROOT / "jupyter")}
    line = [sys.executable, "-m", "jupyter", "lab", "--no-browser", f"--port={port}"]
    line += ["--ServerApp.token=", "--ServerApp.password=", f"--ServerApp.root_dir={tmp_path}"]
    server = subprocess.Popen(line, env=clean, stderr=subprocess.PIPE, text=True)
    address, ends = f"http://127.0.0.1:{port}/lab/api/settings/{SETTING}", time.monotonic() + 100
    try:
        while True:
            try:
                answer = json.loads(urllib.request.urlopen(address, timeout=20).read())
                break
            except OSError as error:
                if time.monotonic() > ends or server.poll() is not None:
                    raise AssertionError("the server does not answer") from error
                time.sleep(0.2)
    finally:
        server.terminate()
        server.communicate(timeout=30)
    defaults = {
        name: setting["default"] for name, setting in answer["schema"]["properties"].items()
    }
    assert defaults["fetchNews"] == "false"  # as it comes, "none": it asks
    assert defaults["checkForUpdates"] is False
