"""The README's way from a run to a service works as it is printed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from live_servers import free_port
from tiny_run import tiny_config

from data_prep.prepare import prepare
from data_prep.simulate import simulate
from mmrec.config import change
from mmrec.training.train import train

pytest_plugins = ["tiny_run", "live_servers"]
ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"<!-- service:begin -->\n```bash\n(.*?)```\n<!-- service:end -->", re.S)


@pytest.mark.slow
def test_the_commands_work_as_printed(tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    [printed] = BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    source, data, run = (tmp_path / "demo" / name for name in ("source", "data", "run"))
    catalogue = simulate(source, num_items=60, num_users=60, num_new_items=4)
    prepare(catalogue, source, data, num_workers=1)
    train(change(tiny_config(), {"training.max_epochs": 1}, "test"), data, run)
    port = free_port()
    command = [sys.executable, "-m", "mmrec.cli", "serve", "demo/run", "--port", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as server:
        try:
            for _ in range(300):
                try:
                    httpx.get(f"http://127.0.0.1:{port}/readyz")
                    break
                except httpx.TransportError:
                    assert server.poll() is None
                    time.sleep(0.1)
            script = printed.replace(":8000", f":{port}").replace("\ncurl", "\necho; curl")
            found = subprocess.run(
                ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, check=False
            )
        finally:
            server.terminate()
        assert server.wait(20) in (0, -15, 143)
    assert found.returncode == 0, found.stderr
    answers = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    lists, events, score, added, similar, removed, search, wanted, by_picture, embed, ready = (
        answers
    )
    assert len(lists["items"]) == 5 and lists["basis"] == "history"
    assert events == {"accepted": 1, "known": 0}
    assert {each["user_id"] for each in score["users"]} == {"u000042", "u000007"}
    assert added["created"] and removed["changed"]
    assert len(similar["items"]) == len(search["items"]) == len(by_picture["items"]) == 3
    assert all(each["found_by"] for each in (*search["items"], *wanted["items"]))
    assert len(wanted["items"]) == 3 and wanted["basis"] == "search"
    assert {each["found_by"] for each in by_picture["items"]} == {"meaning"}
    assert embed["items"][0]["item_id"] == "i00003" and ready["status"] == "ok"
    assert 'mmrec_requests_total{route="/v1/recommend",status="200"} 2.0' in found.stdout
