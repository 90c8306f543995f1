"""What gets deployed fits together: watches, handlers, units and the wheel that carries them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from standfast.cli.commands import COMMANDS
from tests.support.checkout import CHECKOUT
from tests.support.pace import patient

HANDLERS = sorted(path.name for path in (CHECKOUT / "handlers").iterdir() if path.is_file())
PROGRAMS = {
    path.name: f"{folder}/{path.name}"
    for folder in ("bin", "handlers", "exporters")
    for path in sorted((CHECKOUT / folder).glob("*"))
    if path.is_file() and os.access(path, os.X_OK)
}
UNITS = sorted((CHECKOUT / "systemd").glob("*.*")) + sorted((CHECKOUT / "systemd").glob("*/*.conf"))
UNITS = [path for path in UNITS if path.is_file()]
NAMES = {command.name.split()[0]: command for command in COMMANDS}
# As bash-completion, zsh and fish document it, below each directory of $XDG_DATA_DIRS or $fpath.
SHELLS_LOOK_AT = (
    "bash-completion/completions/standfast",
    "zsh/site-functions/_standfast",
    "fish/vendor_completions.d/standfast.fish",
)
# Of the distribution, by its full path.
FOREIGN = ("/usr/sbin/exportfs", "/bin/false", "/bin/systemctl")


def watches() -> Iterator[tuple[str, dict[str, object]]]:
    for path in sorted((CHECKOUT / "watches").glob("*.json")):
        for watch in json.loads(path.read_text())["watches"]:
            yield path.name, watch


def commands_of(unit: Path) -> Iterator[list[str]]:
    for line in unit.read_text().splitlines():
        match = re.match(r"Exec[A-Za-z]*=[-+!:@]*(.*)", line)
        if match and match[1].strip():
            yield match[1].split()


def test_every_watch_names_a_handler_that_exists() -> None:
    all_watches = list(watches())
    assert all_watches
    for file, watch in all_watches:
        handler = watch["handler"]
        assert isinstance(handler, list)
        assert handler[0] in HANDLERS, f"{file}: {handler}"


def test_the_watches_look_at_the_service_and_the_epoch_and_never_at_the_heartbeats() -> None:
    what = {str(watch.get("service") or watch.get("key")) for _, watch in watches()}
    assert what == {"{service}", "{prefix}/{volume}/epoch"}


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_is_executable_and_short(name: str) -> None:
    path = CHECKOUT / "handlers" / name
    assert os.access(path, os.X_OK)
    assert len(path.read_text().splitlines()) <= 18


def test_every_program_begins_alike() -> None:
    """With what finds its interpreter, and has that load nothing of the caller's."""
    beginnings = {
        tuple((CHECKOUT / path).read_text().splitlines()[:5]) for path in PROGRAMS.values()
    }
    [beginning] = beginnings
    assert ' -I "$program" "$@"' in beginning[3]


@pytest.mark.parametrize("name", HANDLERS)
def test_a_handler_calls_a_command_that_exists(name: str) -> None:
    [command] = re.findall(r'main\(\["([a-z-]+)"', (CHECKOUT / "handlers" / name).read_text())
    assert command in NAMES


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_a_unit_runs_programs_that_exist(unit: Path) -> None:
    for program, *arguments in commands_of(unit):
        if program == "standfast":
            assert arguments[0] in NAMES, f"{unit.name}: standfast {arguments[0]}"
            options = [word for word in arguments if word.startswith("--")]
            known = {argument.name for argument in NAMES[arguments[0]].arguments}
            assert set(options) <= known, f"{unit.name}: {options}"
        else:
            assert program in PROGRAMS or program in FOREIGN, f"{unit.name}: {program}"


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_only_templates_use_their_instance(unit: Path) -> None:
    text = unit.read_text()
    ours = [command for command in commands_of(unit) if command[0] not in FOREIGN]
    executed = [word for command in ours for word in command]
    if "@" not in unit.name:
        assert "%i" not in text and "%I" not in text
    elif unit.suffix == ".service":
        assert executed.count("%i") == min(len(ours), 1), (
            "the instance is what the command works on"
        )
    # %I would turn the dashes of data-services into slashes.
    assert "%I" not in text


def test_the_units_that_units_name_exist() -> None:
    names = {path.name for path in UNITS}
    for unit in UNITS:
        for named in re.findall(r"standfast-[a-z]+@?(?:%i)?\.(?:service|timer)", unit.read_text()):
            assert named.replace("%i", "") in names, f"{unit.name}: {named}"


@pytest.mark.parametrize("process", ["agent", "lease"])
def test_a_process_that_has_to_be_there_has_a_watchdog(process: str) -> None:
    text = (CHECKOUT / f"systemd/standfast-{process}@.service").read_text()
    [seconds] = re.findall(r"^WatchdogSec=(\d+)s$", text, re.M)
    assert 20 <= int(seconds) <= 60
    assert re.search(r"^Type=notify$", text, re.M)
    assert re.search(r"^Restart=(always|on-failure)$", text, re.M)


def test_what_conversations_are_handed_to_has_a_watchdog() -> None:
    text = (CHECKOUT / "systemd/standfast-receive.service").read_text()
    [seconds] = re.findall(r"^WatchdogSec=(\d+)s$", text, re.M)
    assert 20 <= int(seconds) <= 60
    for line in ("NotifyAccess=main", "Restart=on-failure", "LimitCORE=0"):
        assert f"\n{line}\n" in text


def test_the_guard_comes_before_the_exports() -> None:
    lines = (CHECKOUT / "systemd/nfs-server.service.d/standfast.conf").read_text().splitlines()
    pre = [line for line in lines if line.startswith("ExecStartPre=")]
    assert pre == [
        "ExecStartPre=",
        "ExecStartPre=nfs-server-guard",
        "ExecStartPre=-/usr/sbin/exportfs -r",
    ]


def test_every_program_is_installed() -> None:
    doc = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())
    wheel = doc["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["shared-scripts"] == {path: name for name, path in PROGRAMS.items()}
    assert set(HANDLERS) <= set(PROGRAMS)


# The wheel

LOCKED = ("--no-build-isolation", "--python", sys.executable)
"""With the backend of requirements.lock."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    uv = Path(sys.executable).parent / "uv"  # `make venv` puts it there
    out = tmp_path_factory.mktemp("wheel")
    built = subprocess.run(
        [uv, "build", "--quiet", "--wheel", *LOCKED, "--out-dir", out, CHECKOUT],
        capture_output=True,
        text=True,
        timeout=patient(100.0),
    )
    assert built.returncode == 0, built.stderr
    [path] = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of a new venv; the dependencies come from the one that runs the tests.

    Programs are called by links in another directory, as the guide makes them.
    """
    venv = tmp_path_factory.mktemp("installed") / "venv"
    uv = Path(sys.executable).parent / "uv"
    commands: list[list[str | Path]] = [
        [uv, "venv", "--quiet", "--python", sys.executable, venv],
        [uv, "pip", "install", "--quiet", "--no-deps", "--python", venv / "bin/python", wheel],
    ]
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=patient(60.0))
        assert done.returncode == 0, done.stderr
    [here] = Path(sys.executable).parents[1].glob("lib/python*/site-packages")
    [there] = venv.glob("lib/python*/site-packages")
    for path in here.iterdir():
        if (
            "standfast" not in path.name
            and path.suffix != ".pth"
            and not (there / path.name).exists()
        ):
            (there / path.name).symlink_to(path)
    links = venv.parent / "local-bin"
    links.mkdir()
    for name in PROGRAMS:
        (links / name).symlink_to(venv / "bin" / name)
    return links


def run_installed(
    installed: Path, name: str, *arguments: str, config: Path, **more: Any
) -> subprocess.CompletedProcess[str]:
    """Elsewhere than in the checkout, whose standfast must not be found."""
    beside = (installed / "standfast").resolve().with_name("python")
    return subprocess.run(
        [beside if name == "python" else installed / name, *arguments],
        cwd=more.pop("cwd", installed.parent),
        env={"PATH": os.environ["PATH"], "STANDFAST_CONFIG_DIR": str(config), **more},
        capture_output=True,
        text=True,
        timeout=patient(30.0),
    )


def test_the_wheel_carries_what_is_deployed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for unit in UNITS:
        end = f".data/data/share/standfast/systemd/{unit.relative_to(CHECKOUT / 'systemd')}"
        assert any(name.endswith(end) for name in names), end
    for path in (CHECKOUT / "watches").iterdir():
        assert any(name.endswith(f"share/standfast/watches/{path.name}") for name in names)
    for where in ("man/man1/standfast.1", *SHELLS_LOOK_AT):
        assert any(name.endswith(f".data/data/share/{where}") for name in names), where
    for name in PROGRAMS:
        assert any(member.endswith(f".data/scripts/{name}") for member in names), name
    assert not any(name.startswith(("tests/", "systemd/", "handlers/")) for name in names)


def test_the_installed_command_runs_without_the_source(installed: Path, tmp_path: Path) -> None:
    version = run_installed(installed, "standfast", "--version", config=tmp_path)
    assert (version.returncode, version.stderr) == (0, "")
    assert re.search(r"\d+\.\d+", version.stdout)
    example = run_installed(installed, "standfast", "config", "example", config=tmp_path)
    assert example.returncode == 0, example.stderr
    tomllib.loads(example.stdout)
    for shell in ("bash", "zsh", "fish"):
        printed = run_installed(installed, "standfast", "completion", shell, config=tmp_path)
        assert (printed.returncode, printed.stderr) == (0, "")
        assert "shtab" in printed.stdout


def test_the_installed_guard_refuses_for_want_of_a_configuration(
    installed: Path, tmp_path: Path
) -> None:
    refused = run_installed(installed, "nfs-server-guard", config=tmp_path / "none")
    assert refused.returncode == 1, refused.stderr
    assert refused.stderr.startswith("refused [config-invalid]: ")


# Whatever Python would look for at its start, or first of all of its library and of ours.
PLANTED = ("sitecustomize", "usercustomize", "standfast", "signal", "json", "msgspec")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory full of modules that say that they were loaded."""
    directory = tmp_path_factory.mktemp("planted")
    for name in PLANTED:
        (directory / f"{name}.py").write_text("open(PLACE, 'a').write(__name__ + '\\n')".replace(
            "PLACE", repr(str(directory / "loaded"))))  # fmt: skip
    user = directory / f"lib/python3.{sys.version_info.minor}/site-packages"
    user.mkdir(parents=True)
    (user / "usercustomize.py").symlink_to(directory / "usercustomize.py")
    (user / "x.pth").write_text("import usercustomize\n")
    return directory


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_loads_anything_of_its_caller(
    installed: Path, planted: Path, tmp_path: Path, name: str
) -> None:
    done = run_installed(
        installed,
        name,
        *(("--version",) if name == "standfast" else ("--help",)),
        config=tmp_path,
        cwd=planted,
        HOME=str(planted),
        PYTHONPATH=str(planted),
        PYTHONUSERBASE=str(planted),
        PYTHONSTARTUP=str(planted / "json.py"),
        PYTHONHOME=str(planted / "nowhere"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert not (planted / "loaded").exists(), (planted / "loaded").read_text()


def test_what_is_planted_would_be_loaded_otherwise(installed: Path, planted: Path) -> None:
    run_installed(installed, "python", "-c", "import json", config=planted, PYTHONPATH=str(planted))
    loaded = (planted / "loaded").read_text()
    (planted / "loaded").unlink()
    assert {"sitecustomize", "json"} <= set(loaded.split())


def test_the_installed_watch_finds_its_definitions(installed: Path, tmp_path: Path) -> None:
    from standfast.config.example import example

    text = example("data-services")
    (tmp_path / "data-services.toml").write_text(text)
    program = (
        "from pathlib import Path\n"
        "from standfast.config.load import load\n"
        "from standfast.consul import watch\n"
        "import standfast\n"
        f"config = load(Path({str(tmp_path)!r}) / 'data-services.toml', require_storage=False)\n"
        "print(len(watch.definitions(config)), standfast.__file__)\n"
    )
    done = run_installed(installed, "python", "-c", program, config=tmp_path)
    assert done.returncode == 0, done.stderr
    count, path = done.stdout.split()
    assert int(count) == len(list(watches()))
    assert Path(path).is_relative_to(installed.parent)


def test_the_agent_waits_for_the_clock_where_somebody_does_and_starts_nobody_who_would() -> None:
    """A node without a time server comes up all the same, and its lease is restarted at once."""
    naming = {
        f"{path.name}: {line}"
        for path in UNITS
        for line in path.read_text().splitlines()
        if "time-sync.target" in line and not line.startswith("#")
    }
    assert naming == {"standfast-agent@.service: After=time-sync.target"}
