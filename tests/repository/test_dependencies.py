"""pyproject.toml and constraints.txt agree with one another and with the code."""

import ast
import sys
from functools import cache
from importlib.metadata import packages_distributions

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.repository.repository import ROOT, pyproject

_OURS = {"loremesh_agents", "loremesh", "buf"}
_FOR_USE_CASES = {"numpy", "pydantic"}  # arithmetic, and the models of settings: no drivers


def _requirements(*extras: str) -> set[str]:
    """Names of the distributions of the plain installation and of these extras."""
    project = pyproject()["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return {canonicalize_name(Requirement(line).name) for line in lines}


def _for_the_product() -> set[str]:
    """Names of the distributions of the plain installation and of all extras that the product may import."""
    return _requirements(*(pyproject()["project"]["optional-dependencies"].keys() - {"bench", "dev"}))


def _imports() -> dict[str, str]:
    """What the product imports anywhere, also late: top-level module, and a file that does."""
    found: dict[str, str] = {}
    for path in (ROOT / "agents").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    modules = [alias.name for alias in names]
                case ast.ImportFrom(module=str(module), level=0):
                    modules = [module, *(f"{module}.{alias.name}" for alias in node.names)]
                case _:
                    continue
            for module in modules:
                found[module] = path.relative_to(ROOT).as_posix()
    return found


@cache
def _distributions_by_module() -> dict[str, list[str]]:
    return {module: [canonicalize_name(name) for name in names] for module, names in packages_distributions().items()}


def _top(module: str) -> str:
    return module.partition(".")[0]


def test_the_product_imports_only_what_its_distribution_names() -> None:
    declared = _for_the_product()
    known = _distributions_by_module()
    foreign = {
        _top(module): path for module, path in _imports().items() if _top(module) not in _OURS | sys.stdlib_module_names
    }
    assert foreign
    # `google` and the like belong to several distributions: one that is declared is enough.
    undeclared = {module: path for module, path in foreign.items() if declared.isdisjoint(known.get(module, []))}
    assert undeclared == {}


def test_the_plain_installation_has_no_torch() -> None:
    everything = (ROOT / "constraints.txt").read_text().splitlines()
    assert [line for line in everything if line.startswith(("torch", "sentence-transformers", "nvidia"))] == []


def test_constraints_pin_every_distribution_to_one_version() -> None:
    pins = [Requirement(line) for line in (ROOT / "constraints.txt").read_text().splitlines()]
    assert [str(pin) for pin in pins if [bound.operator for bound in pin.specifier] != ["=="]] == []
    named = _requirements(*pyproject()["project"]["optional-dependencies"])
    assert named - {canonicalize_name(pin.name) for pin in pins} == set(), "run `make constraints`"


def test_constraints_are_within_the_ranges() -> None:
    pins = {
        canonicalize_name((pin := Requirement(line)).name): pin
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    project = pyproject()["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    outside: list[str] = []
    for requirement in map(Requirement, lines):
        (bound,) = pins[canonicalize_name(requirement.name)].specifier
        if not requirement.specifier.contains(bound.version, prereleases=True):
            outside.append(str(requirement))
    assert outside == [], "run `make constraints`"


def test_the_layers_forbid_every_driver_that_we_depend_on() -> None:
    (contract,) = (
        contract
        for contract in pyproject()["tool"]["importlinter"]["contracts"]
        if "loremesh_agents.domain" in contract.get("source_modules", ())
    )
    forbidden = {_top(module) for module in contract["forbidden_modules"] if not module.startswith("loremesh_agents")}
    declared = _for_the_product()
    drivers = {
        _top(module)
        for module in _imports()
        if _top(module) not in _OURS | _FOR_USE_CASES
        and not declared.isdisjoint(_distributions_by_module().get(_top(module), []))
    }
    assert drivers - forbidden == set()
