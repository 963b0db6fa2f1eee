"""Rules for docker-compose.yml, docker/Dockerfile and .env.example: pinned, without secrets, not root, and agreeing with each other."""
from __future__ import annotations

import configparser
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from distributed_comfy.settings import Settings, variable

ROOT = Path(__file__).resolve().parents[2]
COMPOSE_FILES = ("docker-compose.yml", "docker/published-redis.yml")
TEXTS = (
    *COMPOSE_FILES, ".env.example", "docker/Dockerfile", "docker/entrypoint.sh", "docker/make_secret.sh",
    "docker/monitoring/prometheus.yml", "docker/monitoring/grafana/grafana.ini",
)  # fmt: skip
# Keys of a service in the compose specification, as far as they are used here.
SERVICE_KEYS = {
    "build", "cap_drop", "command", "depends_on", "deploy", "entrypoint", "environment", "healthcheck", "image", "init", "network_mode",
    "ports", "profiles", "read_only", "restart", "scale", "security_opt", "shm_size", "stop_grace_period", "tmpfs", "user", "volumes",
}  # fmt: skip
ONE_SHOT = {"secret", "submit"}
COMFYUI_SERVICES = {"worker", "master"}
PLACEHOLDER = re.compile(r"\$\{([A-Z_]+)(?:(:?[-?])([^}]*))?\}")


@dataclass
class Stage:
    """One FROM of the Dockerfile."""

    name: str
    base: str
    lines: list[str] = field(default_factory=list)

    def values(self, instruction: str) -> list[str]:
        """Arguments of every such instruction."""
        return [line.split(None, 1)[1] for line in self.lines if line.split()[0] == instruction]


def stages() -> dict[str, Stage]:
    """The Dockerfile by stage; continued lines are one."""
    text = re.sub(r"\\\n\s*", " ", read("docker/Dockerfile"))
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = {"": Stage("", "")}
    current = found[""]
    for line in lines:
        if line.startswith("FROM "):
            _, base, _, name = line.split()
            current = found[name] = Stage(name, base)
        else:
            current.lines.append(line)
    return found


def chain(name: str) -> list[Stage]:
    """A stage and what it is based on, the last first."""
    found = stages()
    line = [found[name]]
    while line[-1].base in found:
        line.append(found[line[-1].base])
    return line


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def compose(name: str = "docker-compose.yml") -> dict[str, Any]:
    """A compose file, merges carried out, ``${...}`` as they stand."""
    found: dict[str, Any] = yaml.safe_load(read(name))
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def defaults() -> dict[str, str]:
    """Variables that the compose files use, with the value that counts where they are not set."""
    found: dict[str, str] = {}
    for name in COMPOSE_FILES:
        for variable_name, operator, value in PLACEHOLDER.findall(re.sub(r"(?m)^\s*#.*$", "", read(name))):
            value = "" if "?" in operator else value
            assert found.setdefault(variable_name, value) == value, f"{variable_name} has two defaults"
    return found


def example() -> dict[str, str]:
    """Variables of .env.example."""
    return dict(line.split("=", 1) for line in read(".env.example").splitlines() if line and not line.startswith("#"))


def with_defaults(text: str) -> str:
    return PLACEHOLDER.sub(lambda found: found[3] or "", text)


def seconds(text: str) -> float:
    return float(with_defaults(text).removesuffix("s"))


def targets() -> dict[str, str]:
    """Service -> stage of the Dockerfile."""
    return {name: service["build"]["target"] for name, service in services().items() if "build" in service}


# -- docker-compose.yml --------------------------------------------------------------------------------------------------
def test_every_service_uses_only_keys_of_the_specification() -> None:
    for name, service in services().items():
        assert set(service) <= SERVICE_KEYS, name
        assert ("build" in service) or ("image" in service), name


def test_what_services_name_is_declared() -> None:
    file = compose()
    for name, service in file["services"].items():
        assert set(service.get("depends_on", {})) <= set(file["services"]), name
        for volume in service.get("volumes", []):
            source = with_defaults(volume).split(":")[0]
            assert source.startswith((".", "/")) or source in file["volumes"], f"{name}: {volume}"


def test_the_services_and_profiles_are_those_of_the_documentation() -> None:
    profiles = {name: service.get("profiles", []) for name, service in services().items()}
    assert profiles == {
        "secret": [], "redis-state": [], "redis-blobs": [],
        "worker": ["gpu"], "master": ["gpu"], "worker-cpu": ["cpu"], "submit": ["submit"], "flower": ["cpu", "gpu", "flower"],
        "metrics": ["monitoring"], "prometheus": ["monitoring"], "grafana": ["monitoring"],
    }  # fmt: skip


def test_a_service_depends_only_on_what_its_profile_starts() -> None:
    for name, service in services().items():
        for other in service.get("depends_on", {}):
            assert not services()[other].get("profiles"), f"{name} needs {other}, which has a profile of its own"


def test_only_the_gpu_profile_asks_for_gpus() -> None:
    for name, service in services().items():
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert bool(devices) == (service.get("profiles") == ["gpu"]), name
        assert all(device == {"driver": "nvidia", "count": "all", "capabilities": ["gpu"]} for device in devices)


def test_foreign_images_are_pinned_to_a_patch_version() -> None:
    for name, service in services().items():
        if "build" in service:
            assert service["image"].startswith("distributed-comfy/") and service["image"].endswith(":local"), name
        else:
            pinned = r"docker\.io/(valkey/valkey:8\.\d+\.\d+-alpine|prom/prometheus:v\d+\.\d+\.\d+|grafana/grafana:\d+\.\d+\.\d+)"
            assert re.fullmatch(pinned, service["image"]), name


def test_no_service_has_more_rights_than_it_needs() -> None:
    for name, service in services().items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["init"] is True, name
        assert "privileged" not in service, name


def test_long_running_services_are_started_again_and_one_shot_ones_are_not() -> None:
    for name, service in services().items():
        assert service.get("restart", "no") == ("no" if name in ONE_SHOT else "unless-stopped"), name


def test_a_stopped_worker_has_more_time_than_it_may_drain() -> None:
    for name in ("worker", "worker-cpu"):
        service = services()[name]
        drain_s = float(with_defaults(service["environment"]["DC_DRAIN_TIMEOUT_S"]))
        assert drain_s == Settings.model_fields["drain_timeout_s"].default
        # After the limit the item is given back, and the engine process and the threads are ended: 5 s, 5 s and some to spare.
        assert seconds(service["stop_grace_period"]) >= drain_s + 20


def test_the_servers_never_evict_and_only_the_state_is_kept() -> None:
    state, blobs = (services()[name]["command"].split() for name in ("redis-state", "redis-blobs"))
    for command in (state, blobs):
        assert command[command.index("--maxmemory-policy") + 1] == "noeviction"
        assert command[1] == "/var/lib/dc-secret/valkey.conf", "the password's file"
    assert state[state.index("--appendonly") + 1] == "yes"
    assert state[state.index("--appendfsync") + 1] == "everysec"
    assert blobs[blobs.index("--appendonly") + 1] == "no"
    assert "--maxmemory" in blobs


def test_ports_are_published_on_an_address_that_somebody_chose() -> None:
    for name in COMPOSE_FILES:
        for service in compose(name)["services"].values():
            for port in service.get("ports", []):
                assert with_defaults(port).startswith("127.0.0.1:") or port.startswith("${REDIS_ADDRESS:?"), port


def test_settings_that_the_stack_passes_on_exist() -> None:
    known = {variable(name) for name in Settings.model_fields}
    for name, service in services().items():
        unknown = {key for key in service.get("environment", {}) if key.startswith("DC_")} - known
        assert not unknown, name


# -- .env.example --------------------------------------------------------------------------------------------------------
def test_env_example_names_every_variable_and_no_other() -> None:
    assert set(example()) == set(defaults())


def test_env_example_shows_the_values_that_count_without_it() -> None:
    shown = {name: value for name, value in example().items() if value}
    assert shown == {name: defaults()[name] for name in shown}


def test_env_example_explains_each_variable() -> None:
    lines = read(".env.example").splitlines()
    for number, line in enumerate(lines):
        if line and not line.startswith("#"):
            assert lines[number - 1].strip(), f"{line} stands behind an empty line: nothing explains it"
            assert not lines[number - 1].startswith("# --"), f"nothing explains {line}"


def test_git_ignores_the_file_with_the_users_values() -> None:
    assert "/.env" in read(".gitignore").splitlines()


# -- secrets -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", TEXTS)
def test_no_file_holds_a_password(name: str) -> None:
    text = read(name)
    for url in re.findall(r"rediss?://[^\s\"'}]*", text):
        user, at, _ = url.rpartition("@")
        assert not at or user.rpartition(":")[2] in ("$password", "PASSWORD"), url
    for key, value in re.findall(r"(?m)^\s*(?:ENV |ARG |- )?([A-Z_]*(?:PASSWORD|TOKEN|SECRET|API_KEY|AUTH)[A-Z_]*)[:=] *(\S*)", text):
        assert value.startswith("$") or not value, f"{key}={value}"
    assert not re.search(r"requirepass\s+(?!%s)\w", text)


# -- docker/Dockerfile ---------------------------------------------------------------------------------------------------
def test_every_base_is_an_earlier_stage_or_the_pinned_image() -> None:
    found = stages()
    names = list(found)
    for number, name in enumerate(names[1:], start=1):
        assert found[name].base == "${PYTHON_IMAGE}" or found[name].base in names[1:number], name
    assert found[""].values("ARG") == ["PYTHON_IMAGE=" + defaults()["PYTHON_IMAGE"]]
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-bookworm", defaults()["PYTHON_IMAGE"])


def test_build_arguments_have_one_default_in_both_files() -> None:
    arguments = {}
    for stage in stages().values():
        for argument in stage.values("ARG"):
            name, _, value = argument.partition("=")
            assert arguments.setdefault(name, value.strip('"')) == value.strip('"'), name
    given = [service["build"].get("args", {}) for service in services().values() if "build" in service]
    passed = {name: with_defaults(value) for arguments_given in given for name, value in arguments_given.items()}
    assert passed == {name: arguments[name] for name in passed}


def test_versions_are_pinned() -> None:
    pinned = [name for name in ("COMFY_CLI_VERSION", "COMFYUI_VERSION") for stage in stages().values()
              for value in stage.values("ARG") if re.fullmatch(rf"{name}=\d+\.\d+\.\d+", value)]  # fmt: skip
    assert {"COMFY_CLI_VERSION", "COMFYUI_VERSION"} == set(pinned)
    specs = [value for stage in stages().values() for value in stage.values("ARG") if "_SPEC" in value.split("=")[0]]
    assert len(specs) == 3
    for spec in specs:
        assert all(re.search(r"==\d+\.\d+\.\d+$", word) for word in spec.partition("=")[2].strip('"').split()), spec
    for name in ("requirements", "requirements-flower", "requirements-torch", "comfyui-constraints"):
        lines = [line for line in read(f"docker/{name}.txt").splitlines() if not line.startswith("#")]
        assert lines and all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in lines)


def test_the_pinned_packages_are_what_the_package_asks_for() -> None:
    lines = read("docker/requirements.txt").splitlines() + read("docker/requirements-flower.txt").splitlines()
    pinned = dict(line.lower().split("==") for line in lines if "==" in line)
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    extras = config["options.extras_require"]
    for requirement in config["options"]["install_requires"].split() + extras["flower"].split() + extras["metrics"].split():
        name, _, lowest = re.sub(r"\[.*?\]", "", requirement.lower()).partition(">=")
        assert numbers(pinned[name]) >= numbers(lowest), requirement


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


@pytest.mark.parametrize("target", sorted({"control", "worker-cpu", "worker-gpu", "master"}))
def test_an_image_runs_as_a_user_that_is_not_root(target: str) -> None:
    users = [user for stage in chain(target) for user in reversed(stage.values("USER"))]
    assert users and users[0].split(":")[0].isdigit() and int(users[0].split(":")[0]) > 0


def test_every_image_of_the_stack_says_how_healthy_it_is() -> None:
    assert set(targets().values()) == {"control", "worker-cpu", "worker-gpu", "master"}
    for name, target in targets().items():
        (check,) = stages()[target].values("HEALTHCHECK")
        own = "healthcheck" in services()[name]
        assert (check != "NONE" or own) == (name not in ONE_SHOT), name
    assert all("healthcheck" in service for service in services().values() if "build" not in service)


def test_images_with_comfyui_are_gpl_and_name_its_source_and_the_others_have_none_of_it() -> None:
    for name, target in targets().items():
        own = " ".join(line for stage in chain(target) for line in stage.lines)
        has_comfyui = "--from=comfyui" in own
        assert has_comfyui == (name in COMFYUI_SERVICES), name
        (label,) = stages()[target].values("LABEL")
        licence = re.search(r'image\.licenses="([^"]*)"', label)
        assert licence is not None and licence[1] == ("GPL-3.0-only" if has_comfyui else "Apache-2.0")
        assert ('image.source="${COMFYUI_URL}/tree/v${COMFYUI_VERSION}"' in label) == has_comfyui


def test_nothing_is_fetched_past_the_package_managers() -> None:
    for stage in stages().values():
        assert not stage.values("ADD"), stage.name
        for command in stage.values("RUN"):
            assert not re.search(r"\b(curl|wget)\b|\|\s*(ba)?sh\b", command), command


def test_what_the_dockerfile_copies_is_in_the_build_context() -> None:
    allowed = [line[2:] for line in read(".dockerignore").splitlines() if line.startswith("!/")]
    for stage in stages().values():
        for copy in stage.values("COPY"):
            words = copy.split()
            if words[0].startswith("--from"):
                continue
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert any(source == name or source.startswith(f"{name}/") for name in allowed), source
