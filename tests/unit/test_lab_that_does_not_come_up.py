"""A lab that does not come up is one error, with its reason in the first line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.checkout import CHECKOUT

pytest_plugins = ["pytester"]

# A lab of nodes that need no machine: n2 does what the test says instead of booting, and has a
# unit that failed.
CONFTEST = """
from pathlib import Path
import pytest
from tests.labs.shared import lab, reporting
from tests.support.commands import Finished, LabError, LabTimeout
from tests.labs.shared.node import Machine, Pace, Place
from tests.labs.shared.spec import Spec

HERE = Path(__file__).parent
reporting.JOURNALS = HERE / "journals"


class Claim:
    tag, directory = "fake", HERE / "lab"


lab.Claim, lab.load_modules = Claim, lambda: None


class Node(Machine):
    pace = Pace(1.0, 1.0, 1.0, 1.0, 1.0, 0.01, 0.01)

    def create(self):
        self.directory.mkdir(parents=True)

    def boot(self):
        (self.directory / "console").write_text("hello\\nkernel panic\\n")
        if self.name == "n2":
            n2_boots()
        self.pid = 1

    def power_cut(self):
        self.pid = 0

    def journal(self, unit=None, lines=1000):
        return f"journal of {self.name}, {lines} lines"

    def _run(self, argv, timeout_s, data, env):
        units = "consul.service loaded failed failed Consul\\n" if self.name == "n2" else ""
        return Finished("", 0, units.encode(), b"")

    def _write_down(self, path, text, mode):
        pass


class Lab(lab.Machines):
    pace = Node.pace

    def _build(self, claim):
        for name in ("n1", "n2"):
            place = Place(claim.tag, claim.directory, None)
            self.nodes[name] = Node(Spec(name, "192.168.1.2", {}), place)
            self.nodes[name].create()

    def _undo(self, claim):
        (HERE / "undone").touch()

    def wait_for_leader(self):
        return "n1"


def pytest_configure(config):
    reporting.register(config)


def n2_boots():
    N2_BOOTS


def install(lab):
    INSTALL


@pytest.fixture(scope="session")
def lab_of_all():
    made = Lab(("n1", "n2"))
    made.start()
    yield made
    made.close()


@pytest.fixture(scope="module")
def cluster(lab_of_all):
    install(lab_of_all)
    return lab_of_all


@pytest.fixture
def healthy(cluster):
    return cluster


@pytest.fixture(scope="module")
def monitored(cluster):
    return cluster
"""
TESTS = """
def test_first(cluster): pass
def test_second(healthy): pass
def test_third(monitored): pass
def test_without_a_lab(): pass
"""


def run(pytester: pytest.Pytester, n2_boots: str = "pass", install: str = "pass") -> str:
    """The output of a run of TESTS with the lab."""
    conftest = CONFTEST.replace("N2_BOOTS", n2_boots).replace("INSTALL", install)
    pytester.makepyfile(**{"labs/conftest": conftest, "labs/test_it": TESTS})
    pytester.syspathinsert(CHECKOUT)
    done = pytester.runpytest_subprocess("-rs", "--color=no", "-p", "no:cacheprovider")
    assert done.ret == (n2_boots != "pass" or install != "pass")
    return done.stdout.str()


def first_line_of_the_error(output: str) -> str:
    return re.split(r"_+ ERROR at setup of test_first _+\n", output)[1].partition("\n")[0]


def test_a_lab_that_comes_up_is_no_error(pytester: pytest.Pytester) -> None:
    assert "4 passed in" in run(pytester)


def test_a_boot_that_fails_is_one_error_and_the_tests_behind_it_name_the_first(
    pytester: pytest.Pytester,
) -> None:
    said = run(pytester, n2_boots="raise LabTimeout('n2: boot: too late')")
    assert "1 passed, 2 skipped, 1 error in" in said
    assert said.count("could not be set up: see labs/test_it.py::test_first") == 2
    reason = "n2: boot: too late; n2: its console ends with: kernel panic"
    assert first_line_of_the_error(said) == reason
    assert (pytester.path / "labs/undone").exists()
    [path] = re.findall(r"The journals and consoles of all nodes are in (.*)\.\n", said)
    told = Path(path).read_text()
    assert told.startswith(f"{reason}\n")
    assert "Traceback" in told
    assert all(f"journal of {name}, " in told for name in ("n1", "n2"))
    assert told.count("hello\nkernel panic") == 2


def test_a_boot_that_hangs_until_pytest_ends_it_is_one_error_too(pytester: pytest.Pytester) -> None:
    said = run(pytester, n2_boots="pytest.fail('Timeout >120.0s')")
    assert "1 passed, 2 skipped, 1 error in" in said
    assert first_line_of_the_error(said).startswith("Failed: Timeout >120.0s; n2: its console")


def test_a_failed_first_set_up_of_the_product_is_one_error_and_names_the_unit_that_failed(
    pytester: pytest.Pytester,
) -> None:
    failed = "raise LabError('n1: standfast promote: exit 1: no lease unit\\nwithin 15 s')"
    said = run(pytester, install=failed)
    assert "1 passed, 2 skipped, 1 error in" in said
    assert first_line_of_the_error(said) == (
        "n1: standfast promote: exit 1: no lease unit within 15 s; n2: consul.service is failed"
    )
