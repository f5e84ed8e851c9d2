"""What compose.yaml starts, without Docker: its words and variables, and no right to write."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import sqlalchemy
from container_files import ROOT, read_compose
from live_servers import free_port

from mmrec.retrieval.export import export_run
from mmrec.serving.auth import add_key

pytest_plugins = ["tiny_run", "live_servers"]
PASSWORD = "of-this-test"


def with_password(url: str) -> str:
    """The URL of the database for a user who needs a password, which is not in it."""
    engine = sqlalchemy.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE locked LOGIN SUPERUSER PASSWORD '{PASSWORD}'")
        rules = Path(str(connection.exec_driver_sql("SHOW hba_file").scalar_one()))
        before = rules.read_text()
        rules.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{before}")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    engine.dispose()
    return url.replace("mmrec@", "locked@")


def without_rights() -> list[str]:
    """What runs a command without any capability: of root it leaves what a file's bits allow."""
    if os.geteuid():
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("setpriv is not installed, and root may write everywhere")
    return ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.mark.slow
def test_it_serves_without_rights_from_a_folder_it_may_not_write(
    tiny_run: Path, postgresql_url: str, tmp_path: Path
) -> None:
    export_run(tiny_run, tmp_path / "export", bundle=True)
    models, own = tmp_path / "models", tmp_path / "own"
    own.mkdir()
    models.mkdir()
    shutil.move(tmp_path / "export/bundle", models / "one")
    key = add_key(tmp_path / "keys.json", "shop", "write", days=None, per_minute=600)
    subprocess.run(["chmod", "-R", "a-w", str(models)], check=True)
    prefix = without_rights()
    assert subprocess.run([*prefix, "touch", f"{models}/one/file"], check=False).returncode
    before = {each: each.stat().st_mtime_ns for each in models.rglob("*")}
    given = {"MMREC_VERSION": "one", "MMREC_WORKERS": "2", "POSTGRES_PASSWORD": PASSWORD}
    compose = read_compose(ROOT / "compose.yaml", {**given, "QDRANT_API_KEY": "-"})
    service = compose["services"]["service"]
    words = [each.replace("/models", str(models)) for each in service["command"]]
    words = [each for each in words if not each.startswith("--database")]
    url, port = with_password(postgresql_url), free_port()
    command = [sys.executable, "-m", "mmrec.cli", *words, f"--database={url}", f"--port={port}"]
    environment = {
        **service["environment"], "MMREC_KEYS": str(tmp_path / "keys.json"),
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(own), "TMPDIR": str(own),
    }  # fmt: skip
    http = httpx.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {key}"}
    )
    with subprocess.Popen([*prefix, *command], env=environment, cwd=own) as server, http:
        try:
            for _ in range(600):
                try:
                    ready = http.get("/readyz")
                    break
                except httpx.TransportError:
                    assert server.poll() is None
                    time.sleep(0.1)
            assert ready.json()["version"] == "one" and ready.json()["status"] == "ok"
            event = {"user_id": "new", "item_id": "i1", "event_id": "e"}
            assert http.post("/v1/events", json={"events": [event]}).json()["accepted"] == 1
            listed = http.post("/v1/recommend", json={"user_id": "new", "k": 30}).json()
            assert listed["items"] and not listed["degraded"]
            assert "i1" not in [each["item_id"] for each in listed["items"]]
            assert "mmrec_events_total 1.0" in http.get("/metrics").text
        finally:
            server.terminate()
        assert server.wait(30) in (0, -15)
    assert {each: each.stat().st_mtime_ns for each in models.rglob("*")} == before
    assert not list(own.glob("mmrec-metrics-*"))  # of the workers, gone with them
