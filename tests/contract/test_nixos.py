"""The NixOS module: what the runbook's four hosts come to, and what is refused when it is built.

nixos/hosts has their files, golden/ what they come to. After a change that is meant:
`STANDFAST_GOLDEN=write .venv/bin/pytest tests/contract/test_nixos.py`, and read the difference.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from standfast.cli.main import main
from standfast.clients.units import unit_files
from standfast.config.load import load
from standfast.replication.authorized import granted_by, parted
from standfast.replication.keys import KINDS
from tests.contract.nixos_scene import (
    FILES,
    HERE,
    NIX,
    STORE,
    Host,
    evaluated,
    nix,
    shown,
    why_not_evaluated,
)
from tests.support import needs
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient
from tests.support.scripts import script

HOSTS = ("zippy", "c1", "c2", "c3")
STORAGE = ("zippy", "c1")
DOC = CHECKOUT / "docs/nixos.md"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
LOCK = CHECKOUT / "requirements-runtime.lock"
SETTINGS = "services.standfast.volumes.data-services.settings"
_REASON = why_not_evaluated()
evaluates = pytest.mark.skipif(_REASON is not None, reason=_REASON or "")
WHEEL = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["hatch"]["build"][
    "targets"
]["wheel"]


@needs.tool(NIX, "nix-bin")
@pytest.mark.parametrize(
    "file",
    [*sorted(FILES.glob("*.nix")), *sorted(HERE.rglob("*.nix"))],
    ids=lambda path: str(path.relative_to(CHECKOUT)),
)
def test_nix_reads_every_file(file: Path) -> None:
    done = nix("--parse", file)
    assert done.returncode == 0, done.stderr


@needs.tool(NIX, "nix-bin")
def test_the_flake_has_the_modules() -> None:
    modules = f"((import {FILES}/flake.nix).outputs {{ }}).nixosModules"
    done = nix(
        "--eval", "--strict", "--json", "--expr", f"builtins.mapAttrs (_: toString) {modules}"
    )
    assert done.returncode == 0, done.stderr
    paths = json.loads(done.stdout)
    assert paths.keys() == {"default", "nfs-services-server", "nfs-services-standby"}
    assert all(Path(path).is_file() for path in paths.values())


@pytest.fixture(scope="module")
def hosts() -> dict[str, Host]:
    return {name: Host.of(HERE / f"hosts/{name}.nix") for name in HOSTS}


def host_with(directory: Path, name: str, text: str) -> Host:
    """One of the runbook's hosts, with more in its file."""
    file = directory / "host.nix"
    file.write_text(f"{{ lib, ... }}: {{ imports = [ {HERE}/hosts/{name}.nix ]; {text} }}")
    return Host.of(file)


# The runbook's hosts


@evaluates
@pytest.mark.parametrize("name", HOSTS)
def test_a_host_of_the_runbook_comes_to_what_was_read_and_found_right(
    hosts: dict[str, Host], name: str
) -> None:
    golden = HERE / f"golden/{name}.txt"
    text = shown(hosts[name])
    if os.environ.get("STANDFAST_GOLDEN") == "write":
        golden.write_text(text)
    assert text == golden.read_text()
    assert hosts[name].seen["failed"] == hosts[name].seen["warnings"] == []


@evaluates
@pytest.mark.parametrize("name", STORAGE)
def test_swapping_the_two_imports_changes_nothing(
    hosts: dict[str, Host], name: str, tmp_path: Path
) -> None:
    """As a failover by the runbook does: the host keeps what it sets."""
    text = (HERE / f"hosts/{name}.nix").read_text()
    swap = {"server": "standby", "standby": "server"}
    text = re.sub(r"(?<=nfs-services-)\w+", lambda match: swap[match[0]], text)
    text = text.replace("./common", f"{HERE}/hosts/common").replace("../../../..", str(CHECKOUT))
    (tmp_path / "host.nix").write_text(text)
    assert Host.of(tmp_path / "host.nix") == hosts[name]


@evaluates
def test_the_storage_nodes_have_the_same_but_for_each_others_keys(hosts: dict[str, Host]) -> None:
    zippy, c1 = ({**hosts[name].seen, "keys": []} for name in STORAGE)
    assert zippy == c1
    assert hosts["c2"].seen == hosts["c3"].seen


@evaluates
@pytest.mark.parametrize("name", HOSTS)
def test_standfast_takes_the_configuration_that_is_built(
    hosts: dict[str, Host], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file, text in hosts[name].toml.items():
        (tmp_path / file).write_text(text)
        assert main(["config", "check", str(tmp_path / file)]) == 0, capsys.readouterr()


@evaluates
@pytest.mark.parametrize("wrong", [False, True])
def test_a_configuration_that_is_wrong_fails_when_the_system_is_built(
    tmp_path: Path, wrong: bool
) -> None:
    more = f"{SETTINGS}.lease.wait = 3;" if wrong else ""
    host = host_with(tmp_path, "zippy", more)
    [built] = host.seen["etc"].values()
    (tmp_path / "given").write_text(*host.toml.values())
    package = Path(sys.executable).parents[1]
    env = {"PATH": os.environ["PATH"], "file": str(tmp_path / "given"), "volume": built["volume"]}
    done = subprocess.run(
        ["bash", "-e", "-c", built["script"]],
        env={**env, "package": str(package), "out": str(tmp_path / "out")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=patient(60.0),
    )
    assert (done.returncode != 0) is wrong, done.stderr
    assert (tmp_path / "out").exists() is not wrong
    assert ("lease.wait" in done.stdout + done.stderr) is wrong


def stand_in_store(directory: Path) -> Path:
    """Whatever a unit names below the store, as a program that does nothing."""
    store = directory / "store"
    names = [f"standfast/bin/{name}" for name in WHEEL["shared-scripts"].values()]
    others = ("coreutils/bin/false", "systemd/bin/systemctl", "nfs-utils/bin/exportfs")
    for name in (*names, *others, "nixos-pre-start"):
        script(store / name, "exit 0")
    return store


@evaluates
@needs.tool("systemd-analyze", "systemd")
@pytest.mark.parametrize("name", ["zippy", "c2"])
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    store = stand_in_store(tmp_path)
    units = tmp_path / "units"
    units.mkdir()
    # What NixOS has of its own.
    nfs_server = "[Service]\nType=oneshot\nRemainAfterExit=yes\nExecStart=/bin/true\n"
    if name == "zippy":
        (units / "nfs-server.service").write_text(nfs_server)
    (units / "nomad.service").write_text("[Service]\nExecStart=/bin/true\n")
    Host.of(HERE / f"hosts/{name}.nix", str(store)).write_units(units)
    argv = ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no"]
    done = subprocess.run(
        [*argv, *sorted(path for path in units.iterdir() if path.is_file())],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"},
        capture_output=True,
        text=True,
        timeout=patient(60.0),
    )
    assert (done.returncode, done.stderr) == (0, "")


# One source: systemd/, and what Standfast itself would write


@evaluates
def test_a_unit_differs_from_its_file_in_the_paths_of_programs_alone(
    hosts: dict[str, Host],
) -> None:
    assert set(hosts["zippy"].units) == {
        path.name for path in (CHECKOUT / "systemd").iterdir() if path.suffix != ".catalog"
    } - {"nfs-server.service.d"}
    for name, text in hosts["zippy"].units.items():
        file = (CHECKOUT / "systemd" / name).read_text()
        program = r"(?m)^(Exec\w+=[-+!:@]*)\S*?([\w-]+)(?= |$)"
        assert re.sub(program, r"\1\2", text) == re.sub(program, r"\1\2", file)
        for found in re.findall(r"(?m)^Exec\w+=[-+!:@]*(\S+)", text):
            assert found.startswith(f"{STORE}/"), f"{name}: {found}"


@evaluates
def test_a_client_has_nothing_of_a_storage_node(hosts: dict[str, Host]) -> None:
    """Above all no guard, which would refuse an NFS server of its own."""
    seen = hosts["c2"].seen
    assert set(hosts["c2"].units) == {
        "standfast-resync.service",
        "standfast-resync.timer",
        "standfast-watch@.service",
    }
    assert "nfs-server.service" not in seen["units"]
    assert seen["keys"] == seen["ports"] == seen["tmpfiles"] == []


@evaluates
def test_the_guard_comes_before_all_else_and_nothing_starts_the_server_at_boot(
    hosts: dict[str, Host],
) -> None:
    server = hosts["zippy"].seen["units"]["nfs-server.service"]
    assert server["Service"]["ExecStartPre"] == [
        "",
        f"{STORE}/standfast/bin/nfs-server-guard",
        f"-{STORE}/nfs-utils/bin/exportfs -r",
        f"{STORE}/nixos-pre-start",
    ]
    assert server["wantedBy"] == []
    assert server["Service"]["X-RestartIfChanged"] == "false"


@evaluates
def test_a_deployment_stops_no_process_that_serves(hosts: dict[str, Host]) -> None:
    """It restarts them in one go, and leaves alone what runs to its end."""
    for name, text in hosts["zippy"].units.items():
        if name.endswith(".service"):
            told = hosts["zippy"].seen["units"][name]["Service"]
            oneshot = "\nType=oneshot\n" in text
            assert told.get("X-RestartIfChanged") == ("false" if oneshot else None), name
            assert told.get("X-StopIfChanged") == (None if oneshot else "false"), name


@evaluates
def test_what_reads_the_configuration_when_it_starts_is_restarted_with_it(
    hosts: dict[str, Host],
) -> None:
    """As the guide has it (Change a setting); nothing else is cut for it."""
    guide = (CHECKOUT / "docs/operators-guide.md").read_text()
    section = guide.partition("## Change a setting\n")[2].partition("\n## ")[0]
    told = set(re.findall(r"standfast-(\w+)", section.partition("`[lease]`")[0]))
    triggered = {
        name.partition(".")[0].removeprefix("standfast-").rstrip("@")
        for name, unit in hosts["zippy"].seen["units"].items()
        if "X-Restart-Triggers" in unit["Unit"]
    }
    assert triggered == told


@evaluates
@pytest.mark.parametrize(
    "more",
    [
        "",
        'client.options = "vers=4.1,hard,proto=tcp"; client.nosuid = false;',
        'nfs.port = 2050; consul.service = "other"; paths.bind = "/srv/our-data";',
        'client.name = "nfs.example"; paths.live = "/persist/100%/services";',
    ],
)
def test_the_mount_units_are_those_of_client_units(tmp_path: Path, more: str) -> None:
    host = host_with(tmp_path, "c2", f"{SETTINGS} = {{ {more} }};")
    path = tmp_path / "data-services.toml"
    path.write_text(host.toml["data-services.toml"])
    files = unit_files(load(path, node="c2", require_storage=False, acted_by=False))
    assert set(files) <= set(host.drop_ins)
    for name, text in files.items():
        wanted = [line for line in text.splitlines() if re.match(r"\w+=", line)]
        ignored = ("Description=", "Documentation=", "WantedBy=")
        wanted = [line for line in wanted if not line.startswith(ignored)]
        assert set(wanted) <= set(host.drop_ins[name].splitlines())


@evaluates
def test_paths_of_ones_own_are_told_to_the_units(tmp_path: Path) -> None:
    more = """
      services.standfast.volumes.data-services.settings = {
        paths = { live = "/srv/my-data/services"; snapshots = "/srv/my-data"; run = "/srv/run";
          standby = "/srv/my-data/copies"; };
      };
      fileSystems."/srv" = { };
      fileSystems."/srv/my-data" = { };
    """
    host = host_with(tmp_path, "zippy", more)
    drop_ins = host.drop_ins
    assert "Wants=srv-my\\x2ddata.mount" in drop_ins["standfast-agent@.service"]
    assert "srv-my\\x2ddata.mount" in drop_ins["standfast-agent@.service"].partition("After=")[2]
    assert "RequiresMountsFor=/srv/my-data" in drop_ins["standfast-replicate@.service"].splitlines()
    for name in ("lease", "lost"):
        lines = drop_ins[f"standfast-{name}@.service"].splitlines()
        for path in ("/persist/standfast", "/srv/run"):
            assert f"ReadWritePaths=-{path}" in lines
    ended = drop_ins["standfast-ended@data-services.service"]
    assert "ConditionPathExists=\nConditionPathExists=!/srv/run/%i/nothing-held" in ended


US = "services.standfast"
WANTS = "wants standfast-"


@evaluates
@pytest.mark.parametrize(
    ("name", "more", "there", "not_there"),
    [
        ("c2", f"{US}.automount = false;", "remote-fs.target wants data-services.mount", ".auto"),
        ("c2", f"{US}.client = false;", "wants standfast-watch@data-services", "data-services.m"),
        ("c1", f"{US}.volumes.data-services.weeklyVerify = true;", f"{WANTS}verify@data-s", "@@"),
        ("c1", f"{US}.exporter.enable = false;", f"{WANTS}agent@", f"{WANTS}exporter"),
        ("c1", f'{US}.exporter.listen = "[::]:80";', "ExecStart=\nExecStart=/nix/store/standfast"
         "/bin/standfast-exporter --listen [::]:80\n", "@@"),
        ("c1", f"{US}.openFirewall = false;", "== ports\n== tmpfiles", "2049"),
        ("c1", f"{SETTINGS}.nfs.port = 2050;", "== ports\n2050\n", "2049"),
        ("c1", f"{US}.nodes.c1.settings.priority = 200;", "priority = 200\n", "@@"),
        ("c1", f'{SETTINGS}.fence.backend = "ipset";', "/iptables-legacy/bin\n", "@@"),
        ("c1", f"{US}.volumes.other = {{ }};", f"{WANTS}agent@other.service", f"{WANTS}nomad@o"),
        ("c2", f'{US}.node = "c1";', f"{WANTS}agent@data-services", "@@"),
        ("c2", f'{US}.node = "c1";', 'node = "c1"\n', "@@"),
    ],
)  # fmt: skip
def test_an_option_does_what_the_page_says(
    tmp_path: Path, name: str, more: str, there: str, not_there: str
) -> None:
    host = host_with(tmp_path, name, more)
    assert host.seen["failed"] == []
    text = shown(host)
    assert there in text
    assert not_there not in text


# Keys


LINE = 'restrict,from="192.168.1.2",command="/run/current-system/sw/bin/standfast receive'
LAYER = "nfsServicesStandby.replicationKeys"


@evaluates
@pytest.mark.parametrize(
    ("more", "lines"),
    [
        (f'{LAYER} = [ "{KEY} standfast-alo-zippy" ];', None),
        (f'services.standfast.nodes.zippy.replicationKey = "{KEY}  root@elsewhere\\n";', None),
        (f"{LAYER} = [ ''no-pty,command=\"standfast receive\" {KEY} x'' ];",
         [f'no-pty,command="standfast receive" {KEY} x']),
        (f"{LAYER} = [ ''restrict,command=\"standfast receive\" {KEY} x'' ]; "
         f'services.standfast.nodes.zippy.replicationKey = "{KEY}";',
         [f'restrict,command="standfast receive" {KEY} x']),
        (f'services.standfast.nodes.c1.replicationKey = "{KEY}";', []),
        (f'services.standfast.nodes.zippy = {{ address = lib.mkForce "zippy.lan"; '
         f'replicationKey = "{KEY}"; }};',
         [LINE.replace('from="192.168.1.2",', "") + f' data-services --from zippy" {KEY}']),
        (f'services.standfast.volumes.other = {{ }}; {LAYER} = [ "{KEY} root@zippy" ];',
         [f'{LINE} --from zippy" {KEY} root@zippy']),
    ],
)  # fmt: skip
def test_a_key_is_let_in_as_the_node_whose_it_is_and_for_receiving_alone(
    tmp_path: Path, more: str, lines: list[str] | None
) -> None:
    base = tmp_path / "base.nix"
    base.write_text(
        f"""{{ lib, ... }}: {{
          imports = [ {HERE}/hosts/common.nix {FILES}/nfs-services-standby.nix ];
          networking.hostName = "c1";
          {more}
        }}"""
    )
    found = Host.of(base).seen["keys"]
    if lines is None:
        [line] = found
        assert line.startswith(f'{LINE} data-services --from zippy" {KEY} ')
    else:
        assert found == lines
    for line in found:
        parts = parted(line, KINDS)
        assert parts is not None
        assert granted_by(parts[0]) is not None, "Standfast itself reads it as a line for receiving"


@evaluates
def test_a_key_that_is_named_twice_has_one_line(tmp_path: Path) -> None:
    more = f'services.standfast.nodes.zippy.replicationKey = "{KEY}";'
    assert len(host_with(tmp_path, "c1", more).seen["keys"]) == 1


# What is refused


@evaluates
@pytest.mark.parametrize(
    ("name", "more", "words"),
    [
        ("zippy", 'nfsServicesServer.standbys = [ "c2" ];', "standfast.nodes.c2.address"),
        ("c2", "services.standfast.storage = true;", "services.standfast.nodes.c2.address"),
        ("c2", f"imports = [ {FILES}/nfs-services-standby.nix ];", "nodes.c2.address"),
        ("c1", "services.standfast.storage = lib.mkForce false;", "a standby that isn't there"),
        ("c2", "services.standfast.nodes = lib.mkForce { };", "Every host needs all storage nodes"),
        ("c2", "services.standfast.volumes = lib.mkForce { };", "volumes is empty"),
        ("c2", 'services.standfast.tokenFile = lib.mkForce "/nix/store/x";', "outside the Nix"),
        ("c1", f'nfsServicesStandby.replicationKeys = [ "{KEY} root@nas" ];', "whose they are"),
        ("c1", 'services.standfast.nodes.c1.replicationKey = "restrict ssh-rsa A";', "one public"),
        ("c1", 'services.nfs.server.exports = "/persist/services *(rw)";', "only Standfast may"),
        ("c1", 'services.nomad.settings.client.meta.storage_role = "primary";', "take it out"),
        ("c1", 'services.openssh.settings.PermitRootLogin = "no";', "forced-commands-only"),
        ("c1", f'{SETTINGS}.nfs.server = "ganesha";', "knows the kernel's NFS server alone"),
    ],
)
def test_what_would_not_work_is_refused_with_the_way_out(
    tmp_path: Path, name: str, more: str, words: str
) -> None:
    file = tmp_path / "host.nix"
    imports = f"{HERE}/hosts/{name}.nix"
    more = more.replace("imports = [", f"imports = [ {imports}")
    own = "" if "imports" in more else f"imports = [ {imports} ];"
    file.write_text(f"{{ lib, ... }}: {{ {own} {more} }}")
    failed = Host.of(file).seen["failed"]
    assert any(words in message for message in failed), failed


@evaluates
def test_a_firewall_that_takes_the_fence_away_is_warned_of(tmp_path: Path) -> None:
    more = "networking.nftables = { enable = true; flushRuleset = true; };"
    [warning] = host_with(tmp_path, "c1", more).seen["warnings"]
    assert "flushRuleset" in warning


@evaluates
def test_the_page_has_every_option(hosts: dict[str, Host]) -> None:
    told = set(re.findall(r"(?m)^\| `([\w.<>]+)` \|", DOC.read_text()))
    options = {name.removeprefix("services.standfast.") for name in hosts["c1"].seen["options"]}
    assert told == {name.replace("<name>", "NAME") for name in options} - {"nodes", "volumes"}


# The package


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """What nixos/package.nix says of a library that lies in the directory."""
    directory = tmp_path_factory.mktemp("package")
    for file, name in WHEEL["shared-scripts"].items():
        (directory / "bin").mkdir(exist_ok=True)
        (directory / "bin" / name).write_bytes((CHECKOUT / file).read_bytes())
    (directory / "share/standfast").mkdir(parents=True)
    (directory / "share/standfast/watches").symlink_to(CHECKOUT / "watches")
    said = evaluated(
        HERE / "package.nix", store=STORE, library=str(directory), interpreter=sys.executable
    )
    return said, directory


@evaluates
def test_the_packages_programs_run_the_interpreter_that_has_standfast(
    package: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    said, library = package
    out = tmp_path / "out"
    environment = {
        name: " ".join(value) if isinstance(value, list) else str(value)
        for name, value in said["environment"].items()
    }
    environment["readlink"] = "/bin/readlink"
    done = subprocess.run(
        ["bash", "-e", "-c", said["script"]],
        env={**environment, "PATH": os.environ["PATH"], "library": str(library), "out": str(out)},
        capture_output=True,
        text=True,
        timeout=patient(60.0),
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (out / "bin").iterdir()} == set(WHEEL["shared-scripts"].values())
    assert (out / "share/standfast/watches/volume.json").is_file()
    refused = subprocess.run(
        [out / "bin/nfs-server-guard"],
        env={"PATH": "/nonexistent", "STANDFAST_CONFIG_DIR": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        timeout=patient(30.0),
    )
    assert refused.stderr.startswith("refused [config-invalid]: "), refused.stderr


@evaluates
def test_the_package_is_made_of_what_the_wheel_is_made_of(
    package: tuple[dict[str, Any], Path],
) -> None:
    parts = set(package[0]["src"])
    assert parts >= {"standfast", *WHEEL["shared-data"], *WHEEL["shared-scripts"]}
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    assert parts >= {"pyproject.toml", project["readme"], *project["license-files"]}
    assert all((CHECKOUT / part).exists() for part in parts)
    assert not {part.partition("/")[0] for part in parts} & {".venv", "tests", "tools", "nixos"}


@evaluates
def test_the_package_has_our_dependencies_and_what_is_pinned_is_in_the_lock(
    package: tuple[dict[str, Any], Path],
) -> None:
    said = package[0]
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    names = [one if isinstance(one, str) else one["pname"] for one in said["dependencies"]]
    assert names == [re.split("[<>=]", one)[0] for one in project["dependencies"]]
    lock = LOCK.read_text()
    pins = [said["pinned"][name] for name in ("python-consul2", "python-nomad")]
    for pin in pins:
        entry = lock.partition(f"\n{pin['pname']}=={pin['version']} ")[2].partition("\n\n")[0]
        hashes = re.findall(r"sha256:(\w+)", re.split(r"\n(?! )", entry)[0])
        assert pin["src"]["sha256"] in hashes, pin["pname"]
        assert f"-{pin['version']}-" in pin["src"]["url"]


@evaluates
def test_the_package_is_built_by_any_hatchling(package: tuple[dict[str, Any], Path]) -> None:
    """nixpkgs has one version, and the lock's is another."""
    text = (CHECKOUT / "pyproject.toml").read_text()
    [expression] = re.findall(r"sed -i '([^']+)'", package[0]["postPatch"])
    argv = ["sed", expression]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=True)
    assert tomllib.loads(done.stdout)["build-system"]["requires"] == ["hatchling"]


def test_what_is_left_out_is_told_with_the_way_to_have_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(tmp_path / NIX, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NIXPKGS_LIB", raising=False)
    assert "NIXPKGS_LIB" in str(why_not_evaluated())
    (tmp_path / NIX).unlink()
    assert "nix-bin" in str(why_not_evaluated())
