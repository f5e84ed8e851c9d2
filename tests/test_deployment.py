"""Dockerfile, compose.yaml and what they start, checked without a Docker engine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from container_files import (
    ROOT,
    MissingVariable,
    Stage,
    read_compose,
    read_dockerfile,
    travels,
    variables,
)
from sqlalchemy.engine import make_url

from mmrec.cli import app, main
from mmrec.serving import run as run_module
from mmrec.serving.auth import add_key
from mmrec.serving.routes import health
from mmrec.serving.settings import ServiceSettings

DOCKERFILE, COMPOSE, IGNORE = ROOT / "Dockerfile", ROOT / "compose.yaml", ROOT / ".dockerignore"
GIVEN = {"MMREC_VERSION": "one", "POSTGRES_PASSWORD": "a-password", "QDRANT_API_KEY": "a-key"}
VERSION = re.compile(r":v?(\d+)\.(\d+)")
# https://docs.docker.com/reference/compose-file/services: those that are used here.
SERVICE_KEYS = {
    "image", "build", "command", "environment", "user", "secrets", "volumes", "ports",
    "depends_on", "stop_grace_period", "restart", "init", "read_only", "tmpfs", "cap_drop",
    "security_opt", "healthcheck", "profiles",
}  # fmt: skip


@pytest.fixture(scope="module")
def stages() -> list[Stage]:
    return read_dockerfile(DOCKERFILE)


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return read_compose(COMPOSE, GIVEN)


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and line[0] != "#")


def major_minor(image: str) -> tuple[int, int]:
    found = VERSION.search(image)
    assert found is not None, f"{image} is not pinned"
    return int(found[1]), int(found[2])


@contextmanager
def answers(status: int) -> Iterator[int]:
    """A server on loopback that answers /readyz with a status; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *given: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_image_is_built_in_two_stages_from_what_is_there(stages: list[Stage]) -> None:
    build, final = stages
    assert build.image == final.image and build.name == "build"
    assert major_minor(build.image) >= (3, 11)
    for stage in stages:
        assert not stage.all("ADD")
    sources = [source for copy in build.all("COPY") for source in copy.split()[:-1]]
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(wheel["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) < set(sources)
    for source in sources:
        assert (ROOT / source).exists() and travels(Path(source), IGNORE), source
    [from_build] = final.all("COPY")
    assert from_build == "--from=build /opt/mmrec /opt/mmrec"
    [*_, install] = build.all("RUN")
    [extras] = re.findall(r"'\.\[([\w,]+)\]'", install)
    assert set(extras.split(",")) <= set(wheel["project"]["optional-dependencies"])


@pytest.mark.slow
def test_what_travels_is_enough_for_the_wheel(stages: list[Stage], tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in (each for copy in stages[0].all("COPY") for each in copy.split()[:-1]):
        copy_tree = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy_tree(ROOT / name, source / name)  # type: ignore[operator]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(source)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {"mmrec/cli.py", "mmrec/demo.yaml", "data_prep/shards.py"} <= names
    page = {each.relative_to(ROOT).as_posix() for each in (ROOT / "mmrec/serving/page").iterdir()}
    assert {each for each in page if "__pycache__" not in each} <= names


def test_all_is_installed_as_pinned_from_the_indexes_that_pip_is_given(stages: list[Stage]) -> None:
    [build, final] = stages
    assert build.all("ARG") == ["PIP_EXTRA_INDEX_URL="]
    for install in (each for each in build.all("RUN") if " install " in each):
        assert "--constraint constraints.txt" in install
    assert {"torch", "torchvision", "torchaudio"} <= set(pins())
    assert not final.all("RUN")


def test_only_what_the_image_needs_travels() -> None:
    lines = [line for line in IGNORE.read_text().splitlines() if line and line[0] != "#"]
    assert lines[0] == "*"
    assert all((ROOT / line[1:]).exists() for line in lines if line.startswith("!"))
    for left in (
        ".git", ".venv", ".env", "keys.json", "models/one", "demo/run", "runs", "data", "tests",
        "benchmarks/run.py", "docs/log.md", "mmrec/__pycache__",
    ):  # fmt: skip
        assert not travels(Path(left), IGNORE), left
    assert travels(Path("mmrec/demo.yaml"), IGNORE)


def test_it_runs_as_nobody_in_particular(stages: list[Stage], compose: dict[str, Any]) -> None:
    [user] = stages[-1].all("USER")
    for given in (user, compose["services"]["service"]["user"]):
        assert all(0 < int(each) for each in given.split(":"))
    service = compose["services"]["service"]
    assert service["read_only"] and service["cap_drop"] == ["ALL"] and service["tmpfs"] == ["/tmp"]
    assert "no-new-privileges:true" in service["security_opt"]


def test_the_entry_point_is_ours_and_its_words_are_known(stages: list[Stage]) -> None:
    [entry], [words] = stages[-1].all("ENTRYPOINT"), stages[-1].all("CMD")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert json.loads(entry) == [next(iter(project["scripts"]))]
    assert main(json.loads(words)) == 0


def test_the_health_check_tells_ready_from_not(stages: list[Stage]) -> None:
    [line] = stages[-1].all("HEALTHCHECK")
    interpreter, flag, code = json.loads(line.partition("CMD ")[2])
    assert (interpreter, flag) == ("python", "-c") and ":8000/readyz" in code
    assert "/readyz" in {route.path for route in health.routes}  # type: ignore[attr-defined]
    assert stages[-1].all("EXPOSE") == ["8000"]
    for status, healthy in ((200, True), (503, False)):
        with answers(status) as port:
            there = code.replace(":8000/", f":{port}/")
            found = subprocess.run([sys.executable, flag, there], stderr=subprocess.DEVNULL)
        assert (found.returncode == 0) == healthy


def test_the_health_check_of_qdrant_does_too(compose: dict[str, Any]) -> None:
    kind, *command = compose["services"]["qdrant"]["healthcheck"]["test"]
    assert kind == "CMD"
    for status, healthy in ((200, True), (503, False)):
        with answers(status) as port:
            there = [each.replace("/6333", f"/{port}") for each in command]
            assert (subprocess.run(there, check=False).returncode == 0) == healthy
    gone = subprocess.run(there, stderr=subprocess.DEVNULL, check=False)  # nobody listens now
    assert gone.returncode != 0


def test_compose_is_whole(stages: list[Stage], compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"service", "database", "qdrant"}
    assert set(compose) == {"name", "services", "secrets", "volumes"}
    for name, each in services.items():
        assert set(each) <= SERVICE_KEYS, name
        assert each["restart"] == "unless-stopped"
        for port in each.get("ports", ()):
            assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port)
        for other, how in each.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}
            assert services[other]["healthcheck"]["test"][0] == "CMD"
        for volume in each["volumes"]:
            source = volume.split(":")[0]
            assert source.startswith(("./", "/")) or source in compose["volumes"]
        for secret in each.get("secrets", ()):
            assert secret in compose["secrets"]
    assert stages[-1].all("HEALTHCHECK")  # of the service, in its image
    assert "ports" not in services["database"]
    assert "qdrant" not in services["service"]["depends_on"]
    assert services["qdrant"]["profiles"] == ["index"]
    assert services["service"]["volumes"] == ["./models:/models:ro"]
    assert services["service"]["build"] == {"context": ".", "args": {"PIP_EXTRA_INDEX_URL": ""}}
    seconds = int(services["service"]["stop_grace_period"].removesuffix("s"))
    assert seconds > run_module._DRAIN_S


def test_images_are_pinned_to_what_their_clients_know(compose: dict[str, Any]) -> None:
    from psycopg import pq
    from qdrant_client.common.version_check import is_compatible

    services = compose["services"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert services["service"]["image"] == f"mmrec:{project['version']}"
    postgres = services["database"]["image"]
    assert 14 <= major_minor(postgres)[0] <= pq.version() // 10_000
    # from 18 on the image keeps its data in a folder of its version below this one
    assert major_minor(postgres)[0] >= 18
    assert services["database"]["volumes"] == ["database:/var/lib/postgresql"]
    qdrant = services["qdrant"]["image"].rpartition(":v")[2]
    assert is_compatible(pins()["qdrant-client"], qdrant)


def test_no_secret_is_written_in(compose: dict[str, Any]) -> None:
    asked = variables(COMPOSE)
    secrets = {"POSTGRES_PASSWORD", "QDRANT_API_KEY"}
    assert secrets < set(asked) and all(asked[name] is None for name in secrets)
    for name in (*secrets, "MMREC_VERSION"):
        with pytest.raises(MissingVariable, match=name):
            read_compose(COMPOSE, {**GIVEN, name: ""})
    for name, service in compose["services"].items():
        for variable, value in service["environment"].items():
            if re.search("PASS|KEY|SECRET|TOKEN", variable):
                is_file = value.startswith("/run/secrets/")
                assert is_file or value in GIVEN.values(), (name, variable)
    [keys] = compose["secrets"].values()
    ignored = [keys["file"], ".env", "models/one"]
    found = subprocess.run(
        ["git", "check-ignore", *ignored], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if found.returncode == 128:
        pytest.skip("not a git checkout")
    assert found.stdout.split() == ignored


def test_the_variables_are_read(compose: dict[str, Any]) -> None:
    from psycopg import pq
    from typer.main import get_command

    given = set(compose["services"]["service"]["environment"])
    serve = get_command(app).commands["serve"]  # type: ignore[attr-defined]
    by_us = {each.envvar for each in serve.params if each.envvar}
    by_libpq = {each.envvar.decode() for each in pq.Conninfo.get_defaults() if each.envvar}
    by_torch = set(re.findall(r"\w+_NUM_THREADS", torch.__config__.parallel_info()))
    assert given == {"MMREC_KEYS", "PGPASSWORD", "OMP_NUM_THREADS"}
    assert "MMREC_KEYS" in by_us and "PGPASSWORD" in by_libpq and "OMP_NUM_THREADS" in by_torch


@pytest.mark.parametrize("workers", ["", "4"])
def test_what_compose_starts_is_a_service(
    workers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`mmrec serve` takes every word of it, and the settings are those that are meant."""
    started: list[ServiceSettings] = []
    monkeypatch.setattr(run_module, "run_service", lambda settings, **_: started.append(settings))
    (tmp_path / "models" / "one").mkdir(parents=True)
    add_key(tmp_path / "keys.json", "shop", "write", days=None, per_minute=600)
    service = read_compose(COMPOSE, {**GIVEN, "MMREC_WORKERS": workers})["services"]["service"]
    monkeypatch.setenv("MMREC_KEYS", str(tmp_path / "keys.json"))
    words = [each.replace("/models", str(tmp_path / "models")) for each in service["command"]]
    assert main(words) == 0
    [settings] = started
    assert settings.path == tmp_path / "models" / "one" and settings.models == tmp_path / "models"
    assert settings.host == "0.0.0.0" and settings.port == 8000
    assert settings.keys == tmp_path / "keys.json" and settings.workers == int(workers or 1)
    url = make_url(settings.database)
    assert url.get_backend_name() == "postgresql" and url.password is None
    database = read_compose(COMPOSE, GIVEN)["services"]["database"]["environment"]
    assert url.host == "database"
    assert (url.username, url.database) == (database["POSTGRES_USER"], database["POSTGRES_DB"])
    assert service["environment"]["PGPASSWORD"] == database["POSTGRES_PASSWORD"]


def test_the_page_names_every_variable_with_its_default() -> None:
    page = (ROOT / "docs" / "scaling-out.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[A-Z_`, ]+`) \|.*\| (.+) \|$", page, re.M)
    told: dict[str, str | None] = {}
    for names, defaults in rows:
        values = re.findall("`([^`]+)`", defaults) or [None]
        told |= dict(zip(re.findall(r"\w+", names), values, strict=True))
    # an empty default is told in words
    assert told == {name: default or None for name, default in variables(COMPOSE).items()}
