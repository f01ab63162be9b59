"""The compose files, the image's recipe and what runs in the containers, without containers."""

import io
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.cli.build import build_fab_from_disk
from flwr.cli.supernode.register import try_load_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

ROOT = Path(__file__).parent.parent.parent
EXECUTORS = {f"clientapp-{number}": f"supernode-{number}" for number in (1, 2, 3)}
EXECUTORS["serverapp"] = "superlink"
SERVERS = sorted(EXECUTORS.values())
SERVICES = sorted([*EXECUTORS, *SERVERS, "run", "tensorboard"])


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / name).read_text())
    return content


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    services: dict[str, Any] = read("docker-compose.yml")["services"]
    return services


@pytest.fixture(scope="module")
def secure(plain: dict[str, Any]) -> dict[str, Any]:
    """As compose merges the overlay: its commands replace, its volumes are added."""
    over = read("docker-compose.tls.yml")["services"]
    merged = {}
    for name, service in plain.items():
        more = over.get(name, {})
        assert set(more) <= {"command", "volumes"}
        merged[name] = service | more
        merged[name]["volumes"] = service["volumes"] + more.get("volumes", [])
    assert set(over) <= set(plain)
    return merged


def test_every_service_is_one_image_without_privileges(plain: dict[str, Any]) -> None:
    assert sorted(plain) == SERVICES
    for service in plain.values():
        assert service["image"] == "fedferry"
        assert service["pull_policy"] == "never"  # no registry has it
        assert service["init"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert not {"user", "privileged", "network_mode", "cap_add", "pid"} & set(service)


def test_ports_are_published_on_loopback_only(plain: dict[str, Any]) -> None:
    ports = [port for service in plain.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_named_volumes_are_declared_and_secrets_are_read_only(secure: dict[str, Any]) -> None:
    declared = read("docker-compose.yml")["volumes"]
    for service in secure.values():
        for volume in service["volumes"]:
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            assert source in declared or source.startswith("./certificates/")
            if "certificates" in source:
                assert volume.endswith(":/certificates:ro")


def test_only_run_may_write_the_verdict(plain: dict[str, Any]) -> None:
    mounts = {name: [v for v in s["volumes"] if "/verdict" in v] for name, s in plain.items()}
    assert mounts.pop("run") == ["verdict:/verdict"]
    assert set(map(tuple, mounts.values())) == {("verdict:/verdict:ro",)}


def test_the_overlay_leaves_nothing_insecure(plain: dict[str, Any], secure: dict[str, Any]) -> None:
    flower = [name for name in SERVICES if name != "tensorboard"]
    assert all("--insecure" in plain[name]["command"] for name in flower)
    for name in flower:
        command = secure[name]["command"]
        assert "--insecure" not in command
        if name in SERVERS:
            assert "--ssl-certfile" in command
        if name != "superlink":
            assert "--root-certificates /certificates/ca.crt" in command
        if name != "run":
            assert "--superexec-auth-secret-file" in command
        if name.startswith("supernode"):
            assert "--auth-supernode-private-key" in command
        # The same shares of the population with and without TLS.
        share = re.compile(r"partition-id=\d num-partitions=\d")
        assert share.findall(command) == share.findall(plain[name]["command"])
    assert "--enable-supernode-auth" in secure["superlink"]["command"]


def test_the_image_is_non_root_silent_and_complete() -> None:
    recipe = (ROOT / "Dockerfile").read_text()
    assert recipe.count("FROM ") == 1
    assert "FROM python:3.11-slim" in recipe
    assert re.findall(r"^USER (.*)", recipe, re.M) == ["fedferry"]
    for setting in (
        "FLWR_TELEMETRY_ENABLED=0",
        "FLWR_DISABLE_UPDATE_CHECK=1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1",
    ):
        assert setting in recipe
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for package in [*packages, "deploy"]:
        assert f"COPY {package} {package}" in recipe
        assert f"!{package}" in ignored


def test_flower_bundles_what_is_in_the_image(tmp_path: Path) -> None:
    recipe = (ROOT / "Dockerfile").read_text()
    for *sources, target in re.findall(r"^COPY (\S+) (\S+)$", recipe, re.M):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target)
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    (stand_ins,) = re.findall(r"^RUN (mkdir tests .*)$", recipe, re.M)
    subprocess.run(stand_ins, shell=True, check=True, cwd=tmp_path)
    with zipfile.ZipFile(io.BytesIO(build_fab_from_disk(tmp_path))) as bundle:
        files = set(bundle.namelist())
    assert "client/app.py" in files
    assert "server/app.py" in files
    assert not [name for name in files if name.startswith(("tests", "deploy", "docs"))]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder)
    return folder


def make_certificates(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "deploy/make_certificates.py"), str(folder)]
    environment = os.environ | {"FEDFERRY_UID": str(os.getuid())}
    subprocess.run(command, check=True, capture_output=True, env=environment)


def handshake(client: ssl.SSLContext, server: ssl.SSLContext, name: str) -> None:
    """A TLS handshake in memory; ssl.SSLError where the client does not trust the server."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    while ends:
        for end in list(ends):
            try:
                end.do_handshake()
                ends.remove(end)
            except ssl.SSLWantReadError:
                continue


@pytest.mark.parametrize("service", SERVERS)
def test_ssl_accepts_each_service_by_its_name(certificates: Path, service: str) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(
        certificates / service / "server.crt", certificates / service / "server.key"
    )
    for caller in [name for name, called in EXECUTORS.items() if called == service]:
        client = ssl.create_default_context(cafile=certificates / caller / "ca.crt")
        client.verify_flags |= ssl.VERIFY_X509_STRICT
        handshake(client, server, service)
        handshake(client, server, "localhost")
        handshake(client, server, "127.0.0.1")
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            handshake(client, server, "somebody-else")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ssl.create_default_context(), server, service)


def test_supernodes_have_nist_keys_that_flower_reads(certificates: Path) -> None:
    seen = set()
    for node in ("supernode-1", "supernode-2", "supernode-3"):
        private = load_ssh_private_key((certificates / node / "node.key").read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.curve.name == "secp384r1"
        public = try_load_public_key(certificates / "run/nodes" / f"{node}.pub")
        assert public == public_key_to_bytes(private.public_key())
        seen.add(public)
    assert len(seen) == 3


def test_each_service_holds_its_own_secrets_and_no_other(certificates: Path) -> None:
    private = [p for p in certificates.rglob("*") if p.suffix in (".key", ".secret")]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in private)
    assert [p.parent.name for p in private if p.name == "ca.key"] == ["ca"]
    held = {
        name: sorted(p.name for p in private if p.parent.name == name)
        for name in [*EXECUTORS, *SERVERS, "run"]
    }
    for executor, server in EXECUTORS.items():
        assert held[executor] == ["executor.secret"]
        own, shared = (certificates / n / "executor.secret" for n in (executor, server))
        assert own.read_bytes() == shared.read_bytes()
        expected = {"executor.secret", "server.key"}
        assert set(held[server]) - {"node.key"} == expected
    assert held["run"] == []
    secrets = {(certificates / name / "executor.secret").read_bytes() for name in SERVERS}
    assert len(secrets) == len(SERVERS)


def test_making_certificates_again_changes_nothing(certificates: Path) -> None:
    def content() -> dict[Path, bytes]:
        return {p: p.read_bytes() for p in certificates.rglob("*") if p.is_file()}

    before = content()
    make_certificates(certificates)
    assert content() == before


def service(verdict: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "deploy.service", *words],
        env=os.environ | {"FEDFERRY_VERDICT": str(verdict)},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_service_ends_with_the_next_verdict_and_not_with_an_old_one(tmp_path: Path) -> None:
    verdict = tmp_path / "verdict.json"
    verdict.write_text("old")
    served = service(verdict, "sh", "-c", "echo started; exec sleep 60")
    assert served.stdout
    assert served.stdout.readline() == "started\n"
    with pytest.raises(subprocess.TimeoutExpired):
        served.wait(1.5)
    verdict.write_text("new")
    assert served.wait(10) == 0


def test_a_service_passes_on_its_commands_end_and_a_request_to_end(tmp_path: Path) -> None:
    assert service(tmp_path / "none", "sh", "-c", "exit 3").wait(10) == 3
    served = service(tmp_path / "none", "sh", "-c", "echo started; exec sleep 60")
    assert served.stdout
    assert served.stdout.readline() == "started\n"
    served.terminate()
    assert served.wait(10) == 143


def test_a_refused_service_tries_again_for_the_stated_time(tmp_path: Path) -> None:
    count = f"echo x >> {tmp_path}/tries; [ $(wc -l < {tmp_path}/tries) = 2 ]"
    served = service(tmp_path / "none", "--retry", "60", "sh", "-c", count)
    _, said = served.communicate(timeout=20)
    assert served.returncode == 0
    assert "sh ended with 1; another try in 3 s, until 60 s after the start" in said


def test_the_runs_service_gives_up_on_a_superlink_that_is_not_there(tmp_path: Path) -> None:
    verdict = tmp_path / "verdict.json"
    done = subprocess.run(
        [sys.executable, "-m", "deploy.submit", "127.0.0.1:9", "--insecure", "--wait", "0"],
        env=os.environ | {"FEDFERRY_VERDICT": str(verdict), "FLWR_HOME": str(tmp_path)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert (
        "verdict on run none: not started (waited 0 s for the SuperLink at 127.0.0.1:9"
        in done.stdout
    )
    assert json.loads(verdict.read_text())["status"] == "not started"
