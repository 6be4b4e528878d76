"""The images and the compose file, as far as they can be checked without a Docker engine."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
import yaml  # transformers needs it too
from tritonclient.grpc import service_pb2, service_pb2_grpc

from openai_frontend.settings import Settings, SettingsError
from triton_vlm import proxy
from triton_vlm.ports import LOOPBACK
from triton_vlm.triton_installation import TritonInstallation
from triton_vlm.triton_server import DRAIN_TIMEOUT_S, UNLOAD_TIMEOUT_S, TritonPorts, command_line

ROOT = Path(__file__).parents[3]
DEPLOY = ROOT / "deploy"
FINAL = ("triton", "proxy")
FIRST_SAFE_TRITON = (26, 8)
IMAGE = "triton-vlm:0.1.0"


@dataclass(frozen=True)
class Stage:
    """One `FROM ... AS name` and the instructions after it."""

    image: str
    instructions: tuple[tuple[str, str], ...]

    def arguments(self, keyword: str) -> list[str]:
        return [text for name, text in self.instructions if name == keyword]


def read_dockerfile() -> tuple[dict[str, str], dict[str, Stage]]:
    """Global arguments, and stages by name."""
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    arguments, stages = {}, {}
    for line in lines:
        keyword, _, rest = line.partition(" ")
        if keyword == "FROM":
            image, name = re.fullmatch(r"(\S+) AS (\S+)", rest).groups()
            stages[name] = Stage(image, ())
        elif not stages:
            key, _, value = rest.partition("=")
            arguments[key] = value
        else:
            stage = stages[name]
            instruction = (keyword, re.sub(r"\s+", " ", rest.strip()))
            stages[name] = Stage(stage.image, (*stage.instructions, instruction))
    return arguments, stages


ARGUMENTS, STAGES = read_dockerfile()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES = COMPOSE["services"]


def copied(stage: str) -> list[tuple[list[str], str]]:
    """(sources, target) of every COPY from the checkout."""
    words = [text.split() for text in STAGES[stage].arguments("COPY")]
    return [(line[:-1], line[-1]) for line in words if not line[0].startswith("--from")]


def health_command(stage: str) -> list[str]:
    (check,) = STAGES[stage].arguments("HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    return [sys.executable, *command[1:]]


def seconds(duration: str) -> int:
    return int(re.fullmatch(r"(\d+)s", duration)[1])


# The images


def test_base_images_are_pinned_and_triton_is_recent_enough() -> None:
    """CVE-2025-23317, CVE-2025-23319, CVE-2025-23320, CVE-2025-23334, CVE-2026-24146, CVE-2026-24208,
    CVE-2026-47476, CVE-2026-47487 and the rest of NVIDIA's bulletins before that release."""
    for value in ARGUMENTS.values():
        assert re.search(r":\d+\.\d+[\w.-]*$", value), value
    for stage in STAGES.values():
        assert re.fullmatch(r"\$\{(\w+)\}", stage.image)[1] in ARGUMENTS
    year, month = re.search(r"tritonserver:(\d+)\.(\d+)-py3$", ARGUMENTS["TRITON_IMAGE"]).groups()
    assert (int(year), int(month)) >= FIRST_SAFE_TRITON


@pytest.mark.parametrize("stage", STAGES)
def test_what_is_copied_exists_and_is_sent_to_the_engine(stage: str) -> None:
    ignore = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sent = [line.removeprefix("!") for line in ignore if line.startswith("!")]
    mounted = re.findall(r"type=bind,source=([^,]+)", " ".join(STAGES[stage].arguments("RUN")))
    for source in [*mounted, *(source for sources, _ in copied(stage) for source in sources)]:
        path = source.rstrip("/")
        assert (ROOT / path).exists(), source
        assert path in sent or path.partition("/")[0] in sent, f"{source} is in .dockerignore"


@pytest.mark.parametrize("stage", FINAL)
def test_images_do_not_run_as_root(stage: str) -> None:
    assert STAGES[stage].arguments("USER") == ["1000:1000"]


def test_the_wheels_packages_are_all_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    sources = [source.rstrip("/") for sources, _ in copied("wheel") for source in sources]
    assert set(packages) <= set(sources)


def test_the_serving_image_gets_no_torch_and_no_second_triton() -> None:
    assert "EXTRAS=" in STAGES["triton"].arguments("ARG")
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text("utf-8"))
    for service in (SERVICES["triton"], gpu["services"]["triton"]):
        extras = service.get("build", {}).get("args", {}).get("EXTRAS", "")
        assert not {"verify", "triton"} & set(extras.split(","))


def test_the_proxys_pins_are_the_projects() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    lines = (DEPLOY / "proxy-requirements.txt").read_text("utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    project = project["project"]
    tracing = project["optional-dependencies"]["tracing"]
    assert set(tracing) < set(pins) <= {*project["dependencies"], *tracing}


def test_the_proxy_runs_from_the_files_its_image_has(tmp_path: Path) -> None:
    for sources, target in copied("proxy"):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target)
            else:
                (tmp_path / target).mkdir(exist_ok=True)
                shutil.copy(ROOT / source, tmp_path / target)
    code = (
        "import sys, openai_frontend.__main__\n"
        "for name in ('openai_frontend', 'python_backend'): print(sys.modules[name].__file__)\n"
    )
    # -P and PYTHONPATH: the checkout is installed here, and must not help.
    result = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    assert all(line.startswith(str(tmp_path)) for line in result.stdout.splitlines())


class Ready(BaseHTTPRequestHandler):
    """The proxy's health, 503 while `is_ready` is false."""

    is_ready = True

    def do_GET(self) -> None:
        assert self.path == "/health/ready"
        self.send_response(200 if self.is_ready else 503)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None: ...


def run_health(stage: str, port: int, own_port: int) -> int:
    command = [part.replace(f":{own_port}", f":{port}") for part in health_command(stage)]
    return subprocess.run(command, capture_output=True, timeout=100).returncode


def test_the_proxys_health_is_that_of_the_whole_stack() -> None:
    with ThreadingHTTPServer((LOOPBACK, 0), Ready) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert run_health("proxy", server.server_port, 9000) == 0
        Ready.is_ready = False
        assert run_health("proxy", server.server_port, 9000) != 0
        server.shutdown()


class Triton(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self) -> None:
        self.is_ready = True

    def ServerReady(self, request, context):  # noqa: N802 - the protocol's name
        return service_pb2.ServerReadyResponse(ready=self.is_ready)


@pytest.mark.timeout(300)
def test_tritons_health_is_its_readiness() -> None:
    server, triton = grpc.server(ThreadPoolExecutor(1)), Triton()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(triton, server)
    port = server.add_insecure_port(f"{LOOPBACK}:0")
    server.start()
    assert run_health("triton", port, 8001) == 0
    triton.is_ready = False
    assert run_health("triton", port, 8001) != 0
    server.stop(None).wait()
    with socket.create_server((LOOPBACK, 0)) as free:
        closed = free.getsockname()[1]
    assert run_health("triton", closed, 8001) != 0


# The compose file


def test_triton_gets_the_launchers_flags() -> None:
    expected = command_line(
        TritonInstallation(executable=Path("tritonserver")),
        Path("/models"),
        TritonPorts(grpc=8001, metrics=8002),
        "triton-vlm",
    )
    # In a container of its own it must be reachable for the proxy; the network is internal.
    assert SERVICES["triton"]["command"] == [
        argument.replace(f"address={LOOPBACK}", "address=0.0.0.0") for argument in expected
    ]


def test_triton_is_on_an_internal_network_only_and_publishes_nothing() -> None:
    triton = SERVICES["triton"]
    assert "ports" not in triton
    assert "network_mode" not in triton
    assert all(COMPOSE["networks"][name]["internal"] for name in triton["networks"])


def test_the_proxy_is_published_on_the_loopback_address_only() -> None:
    assert SERVICES["proxy"]["ports"] == ["127.0.0.1:${PORT:-9000}:9000"]


def test_the_proxy_asks_for_a_key_of_a_file_that_must_be_given() -> None:
    """Deny by default: whoever opens the port to others has keys already."""
    command = SERVICES["proxy"]["command"]
    (secret,) = SERVICES["proxy"]["secrets"]
    assert command[command.index("--api-key-file") + 1] == f"/run/secrets/{secret}"
    assert COMPOSE["secrets"][secret]["file"].startswith("${API_KEYS:?")
    settings = Settings.from_command_line(command, {})
    assert settings.needs_key
    assert not settings.allow_anonymous


def test_the_proxys_image_does_not_start_open(tmp_path: Path) -> None:
    (arguments,) = STAGES["proxy"].arguments("CMD")
    with pytest.raises(SettingsError, match="no API key is needed"):
        Settings.from_command_line(json.loads(arguments), {})
    Settings.from_command_line(json.loads(arguments), {"TRITON_VLM_API_KEY_FILE": "/keys"})


def test_the_proxy_waits_for_a_healthy_triton_and_talks_to_its_port() -> None:
    service = SERVICES["proxy"]
    assert service["depends_on"] == {"triton": {"condition": "service_healthy"}}
    assert set(service["networks"]) > set(SERVICES["triton"]["networks"])
    assert service["command"][:2] == ["--triton", "triton:8001"]


@pytest.mark.parametrize("name", SERVICES)
def test_containers_have_no_more_rights_than_they_need(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert [mount.partition(":")[0] for mount in service["tmpfs"]] == ["/tmp"]
    assert all(volume.endswith(":ro") for volume in service.get("volumes", []))
    assert service["restart"] == "unless-stopped"


def test_containers_get_the_time_to_drain_that_the_launcher_gives() -> None:
    triton, frontend = (seconds(SERVICES[name]["stop_grace_period"]) for name in FINAL)
    assert triton > DRAIN_TIMEOUT_S + UNLOAD_TIMEOUT_S
    assert frontend > proxy.DRAIN_TIMEOUT_S


@pytest.mark.parametrize("name", FINAL)
def test_services_are_built_from_the_stage_of_their_name(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()
    assert build["target"] == name


def test_the_gpu_file_only_adds_a_gpu_and_what_python_needs_for_it() -> None:
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text("utf-8"))
    assert gpu == {
        "services": {
            "triton": {
                "build": {"args": {"EXTRAS": "gpu"}},
                "deploy": {
                    "resources": {
                        "reservations": {
                            "devices": [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
                        }
                    }
                },
            }
        }
    }


# The commands in the documentation


def docker_run(document: str) -> list[str]:
    """The one `docker run` of a document, as words, its models folder left out."""
    text = (ROOT / document).read_text("utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^docker run .*$", text, flags=re.MULTILINE)
    return shlex.split(re.sub(r"\$PWD/\w+", "$PWD/FOLDER", line))


def test_the_documents_agree_on_docker_run() -> None:
    assert docker_run("README.md") == docker_run("docs/deployment.md")


def test_one_container_has_the_same_rights_as_two() -> None:
    words = docker_run("README.md")
    run, serve = words[: words.index(IMAGE)], words[words.index(IMAGE) + 1 :]
    triton = SERVICES["triton"]
    assert triton["image"] == IMAGE
    options = {name: run[i + 1] for i, name in enumerate(run[:-1]) if name.startswith("--")}
    assert {"--rm", "--init", "--read-only"} <= set(run)
    assert options["--cap-drop"] == "ALL"
    assert options["--security-opt"] == "no-new-privileges"
    assert options["--tmpfs"] == triton["tmpfs"][0]
    volumes = [run[i + 1] for i, word in enumerate(run) if word == "--volume"]
    assert all(volume.endswith(":ro") for volume in volumes)
    assert serve[serve.index("--api-key-file") + 1] in [volume.split(":")[1] for volume in volumes]
    assert options["--publish"] == "127.0.0.1:9000:9000"
    # Where the image's health check looks.
    assert serve[:2] == ["triton-vlm", "serve"]
    assert serve[serve.index("--triton-grpc-port") + 1] == "8001"
