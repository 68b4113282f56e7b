"""What the distribution promises: light base install, pinned versions, and imports that point downwards."""

import ast
import functools
import importlib.metadata
import pathlib
import re
import subprocess
import sys
import time
import tomllib
import venv

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import molmoact2_jax
from molmoact2_jax.cli import main

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "molmoact2_jax"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PYTHONS = ("3.11", "3.12", "3.13")
LOCKED_EXTRAS = ("plot", "train", "gcs", "serve", "sim", "dev")

NEVER_IMPORTED = {"torch", "tensorflow", "transformers", "lerobot", "pickle", "dill", "joblib"}
NEVER_IN_BASE = {"torch", "tensorflow", "transformers", "grain", "matplotlib", "opencv-python-headless", "pyarrow"}

# what each part of the package may import of the others; a part may always import itself
LEAVES = {"batch", "config", "presets"}
MODEL = LEAVES | {"nn", "models"}
HOST = LEAVES | {"text", "data"}
BELOW_TOP = MODEL | HOST | {"parallel", "checkpoint"}
MAY_IMPORT = {
    "batch": set(),
    "config": {"presets"},
    "presets": {"config"},
    "nn": {"config"},
    "models": MODEL,
    "parallel": {"nn"},
    "text": LEAVES,
    "data": HOST,
    "envs": LEAVES,
    "checkpoint": BELOW_TOP,
    "serve": BELOW_TOP,
    "train": BELOW_TOP,
    "eval": BELOW_TOP | {"serve", "train", "envs"},
    "cli": BELOW_TOP | {"serve", "train", "eval", "envs"},
    "__init__": BELOW_TOP | {"serve"},
}


@functools.cache
def sources() -> dict[str, ast.Module]:
    """Syntax tree of every module by its path inside the package."""
    return {p.relative_to(PACKAGE).as_posix(): ast.parse(p.read_text()) for p in sorted(PACKAGE.rglob("*.py"))}


def imported(tree: ast.AST) -> set[str]:
    """Full names of what a module imports anywhere: of `from a import b` both `a` and `a.b`."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def roots(tree: ast.AST) -> set[str]:
    return {name.partition(".")[0] for name in imported(tree)}


def parts(tree: ast.AST) -> set[str]:
    """Parts of our package that a module imports."""
    names = {name.split(".")[1] for name in imported(tree) if name.startswith("molmoact2_jax.")}
    return names & set(MAY_IMPORT)


def part_of(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def requirements(*extras: str) -> list[Requirement]:
    listed = list(PROJECT["dependencies"])
    for extra in extras:
        listed += PROJECT["optional-dependencies"][extra]
    found = map(Requirement, listed)
    return [r for r in found if canonicalize_name(r.name) != "molmoact2-jax"]


@functools.cache
def installed_with_base() -> frozenset[str]:
    """Names of the base dependencies and of all that they bring."""
    found, todo = set(), [canonicalize_name(r.name) for r in requirements()]
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                todo.append(canonicalize_name(need.name))
    return frozenset(found)


def test_every_part_of_the_package_has_a_place_in_the_order_of_imports():
    assert {part_of(path) for path in sources()} <= set(MAY_IMPORT)


def test_imports_point_downwards():
    wrong = {
        path: up
        for path, tree in sources().items()
        if (up := parts(tree) - MAY_IMPORT[part_of(path)] - {part_of(path)})
    }
    assert not wrong


def test_no_module_imports_another_framework_or_pickle():
    assert not {path: bad for path, tree in sources().items() if (bad := roots(tree) & NEVER_IMPORTED)}


def test_text_and_data_run_without_jax_and_grain_stays_in_the_loader():
    host = {path: roots(tree) for path, tree in sources().items() if part_of(path) in ("text", "data")}
    assert not {path for path, names in host.items() if names & {"jax", "jaxlib", "flax", "optax"}}
    assert {path for path, tree in sources().items() if "grain" in roots(tree)} <= {"data/loader.py"}


def test_models_know_no_files():
    inner = {path: roots(tree) for path, tree in sources().items() if part_of(path) in ("nn", "models")}
    assert not {path for path, names in inner.items() if names & {"pathlib", "os", "io", "json", "safetensors", "PIL"}}


def test_only_commands_print():
    def prints(tree: ast.AST) -> bool:
        return any(isinstance(n, ast.Name) and n.id == "print" for n in ast.walk(tree)) or any(
            isinstance(n, ast.Attribute) and n.attr in ("stdout", "__stdout__") for n in ast.walk(tree)
        )

    assert not [path for path, tree in sources().items() if part_of(path) != "cli" and prints(tree)]


def test_every_foreign_import_is_a_dependency_and_the_command_knows_its_extra():
    ours = {"molmoact2_jax", "__future__"} | set(sys.stdlib_module_names)
    foreign = set().union(*(roots(tree) for tree in sources().values())) - ours
    homes = importlib.metadata.packages_distributions()
    homes |= {name: [name] for name in main.EXTRAS if name not in homes}  # an extra that is not installed here
    base = installed_with_base()
    for name in sorted(foreign):
        distributions = {canonicalize_name(d) for d in homes.get(name, [name])}
        if name not in main.EXTRAS:
            assert distributions & base, f"{name} neither comes with the base dependencies nor is in cli.main.EXTRAS"
            continue
        extra = {canonicalize_name(r.name) for r in requirements(main.EXTRAS[name])}
        assert distributions & extra, f"{name} is not in the extra {main.EXTRAS[name]!r} of pyproject.toml"


def test_the_base_dependencies_bring_no_other_framework_and_nothing_of_the_extras():
    found = installed_with_base()
    assert {"jax", "flax", "numpy", "tokenizers", "safetensors", "pillow"} <= found
    assert not found & NEVER_IN_BASE


def test_the_package_imports_in_two_seconds_of_one_core_and_a_policy_needs_none_of_the_heavy_libraries():
    heavy = sorted((set(main.EXTRAS) | NEVER_IMPORTED) - {"pickle", "optax", "orbax", "msgpack"})  # flax loads those
    program = (
        "import sys, time\n"
        "begin = time.process_time()\n"  # what else runs on the machine does not count
        "import molmoact2_jax\n"
        "print(time.process_time() - begin)\n"
        "molmoact2_jax.Policy, molmoact2_jax.checkpoint.hf.released_shapes\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.splitlines()
    assert float(seconds) < 2
    assert loaded == "[]"


def test_a_robots_client_loads_neither_the_model_nor_the_server():
    heavy = ["jax", "flax", "tokenizers", "safetensors", "PIL", "starlette", "uvicorn"]
    program = (
        "import sys\n"
        "from molmoact2_jax.serve import chunks, client\n"
        f"print([name for name in {heavy!r} if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_policies_and_their_limits_import_nothing_of_the_serve_extra():
    needs_extra = {f"serve/{name}.py" for name in ("client", "http", "server", "websocket", "wire_msgpack")}
    extra = {"msgpack", "starlette", "uvicorn", "websockets"}
    assert {path for path, tree in sources().items() if roots(tree) & extra} == needs_extra


def test_the_version_is_the_same_in_the_package_the_metadata_and_the_changelog():
    released = re.findall(r"^## \[(\d[^\]]*)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert molmoact2_jax.__version__ == PROJECT["version"] == importlib.metadata.version("molmoact2-jax")
    assert PROJECT["version"] in released


def test_the_licence_and_the_notice_are_shipped():
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert "tokenizer.json" in (ROOT / "NOTICE").read_text()
    assert set(PROJECT["license-files"]) == {"LICENSE", "NOTICE"}


@pytest.mark.parametrize("python", PYTHONS)
def test_the_lock_pins_every_direct_dependency_to_a_version_that_fits(python):
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    pins: dict[str, str] = {}
    for pin in map(Requirement, lines):
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            (only,) = pin.specifier
            assert only.operator == "=="
            assert canonicalize_name(pin.name) not in pins, f"{pin.name} is pinned twice for {python}"
            pins[canonicalize_name(pin.name)] = only.version
    for need in requirements(*LOCKED_EXTRAS):
        assert need.specifier.contains(pins[canonicalize_name(need.name)]), need


def test_the_lock_names_no_index_and_no_file():
    text = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|--hash|--index|--find-links|@ ", text)


@pytest.mark.slow
def test_a_base_install_into_an_empty_environment_predicts_without_the_heavy_libraries(tmp_path):
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "--quiet", "-c", ROOT / "requirements.lock", ROOT]
    subprocess.run(install, check=True, cwd=tmp_path)
    done = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
    assert not NEVER_IN_BASE & {canonicalize_name(line.partition("==")[0]) for line in done.stdout.splitlines()}
    begin = time.perf_counter()
    subprocess.run([python, "-c", "import molmoact2_jax"], check=True, cwd=tmp_path)
    assert time.perf_counter() - begin < 2
    predict = (
        "import sys, numpy, molmoact2_jax\n"
        "directory, task = sys.argv[1:]\n"
        "case = numpy.load(f'{directory}/golden.npz')\n"
        "pictures = [case['case0/image0'], case['case0/image1']]\n"
        "policy = molmoact2_jax.Policy.from_pretrained(directory, dtype='float32')\n"
        "noise = case['case0/noise'][0]\n"
        "out = policy.predict_action(pictures, task, case['case0/state'], 'libero', noise=noise)\n"
        "numpy.testing.assert_allclose(out.actions, case['case0/actions_continuous'][0], atol=2e-5)\n"
    )
    task = "Pick up the red bowl and place it on the plate."
    subprocess.run([python, "-c", predict, ROOT / "tests/golden/tiny", task], check=True, cwd=tmp_path)
