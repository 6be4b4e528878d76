"""What must not be anywhere in the code, read from the source; and that docs/security.md tells the truth."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SERVED = ("openai_frontend", "python_backend", "model_repository")
PACKAGES = (*SERVED, "builders", "triton_vlm")

# Modules that run code while they read data.
UNSAFE_MODULES = (
    *("pickle", "cPickle", "dill", "cloudpickle"),
    *("shelve", "marshal", "joblib", "jsonpickle"),
)
# What can fetch from the network.
NETWORK_MODULES = (
    *("httpx", "httpcore", "requests", "urllib3", "aiohttp"),
    *("http.client", "urllib.request", "socket"),
)
# `addresses` parses URLs with httpx.
NETWORK_USERS = {"openai_frontend/fetch.py", "openai_frontend/addresses.py"}


def sources(*packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield str(path.relative_to(ROOT)), ast.parse(path.read_text(encoding="utf-8"))


def imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.Module) -> Iterator[tuple[str, dict[str, str]]]:
    """(function as it is written, keyword arguments as they are written)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords if k.arg}
            yield ast.unparse(node.func), keywords


def is_in(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def unsafe_calls(tree: ast.Module) -> list[str]:
    found = []
    for function, keywords in calls(tree):
        is_unsafe = (
            function in ("eval", "exec", "compile", "__import__", "os.system", "os.popen")
            or function in ("torch.load", "yaml.load", "yaml.unsafe_load", "joblib.load")
            or function.endswith((".read_pickle", ".to_pickle"))
            or keywords.get("shell", "False") != "False"
            or keywords.get("trust_remote_code", "False") != "False"
            or keywords.get("allow_pickle", "False") != "False"
        )
        if is_unsafe:
            found.append(function)
    return found


def test_nothing_is_unpickled() -> None:
    """CVE-2026-115912, CVE-2025-10164, CVE-2026-3059, CVE-2026-3060, CVE-2026-7301, CVE-2026-7304,
    CVE-2025-23254, CVE-2025-33255, CVE-2026-24163: pickles from a request, a socket or a file."""
    found = [
        f"{path} imports {name}"
        for path, tree in sources(*PACKAGES)
        for name in imports(tree)
        if is_in(name, UNSAFE_MODULES)
    ]
    assert found == []


def test_no_code_comes_from_data() -> None:
    """CVE-2026-65119, CVE-2025-62164: a checkpoint's code, torch.load, eval; and no shell."""
    found = {path: unsafe_calls(tree) for path, tree in sources(*PACKAGES)}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)",
        "np.load(f, allow_pickle=True)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
        "subprocess.run(x, shell=True)",
        "eval(x)",
    ],
)
def test_unsafe_call_would_be_found(code) -> None:
    assert unsafe_calls(ast.parse(code))


def test_nothing_that_serves_can_fetch_but_one_module() -> None:
    """CVE-2026-34753 (GHSA-pf3h-qjgv-vcpr): a second way to fetch, without the policy; CVE-2026-24234,
    PR #43117 of vLLM: a stage or a processor that opens URLs by itself."""
    users = {
        path
        for path, tree in sources(*SERVED)
        for name in imports(tree)
        if is_in(name, NETWORK_MODULES)
    }
    assert users == NETWORK_USERS
    assert "Client" not in (ROOT / "openai_frontend" / "addresses.py").read_text(encoding="utf-8")


def test_images_are_opened_by_one_function_with_a_list_of_formats() -> None:
    """CVE-2026-22778, CVE-2026-40192, CVE-2026-25990: every other decoder of Pillow."""
    opened = [
        (path, keywords.get("formats"))
        for path, tree in sources("openai_frontend", "python_backend")
        for function, keywords in calls(tree)
        if function == "Image.open"
    ]
    assert opened == [("python_backend/image.py", "FORMATS")]


def test_pillow_is_new_enough() -> None:
    """CVE-2026-55379, CVE-2026-54059, CVE-2026-55380, CVE-2026-54060, CVE-2026-59197: fixed in 12.3."""
    assert '"pillow>=12.3"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_litellm_is_not_needed_by_anything() -> None:
    """PYSEC-2026-2: malicious versions were on the index."""
    for path in (ROOT / "pyproject.toml", *ROOT.rglob("*requirements*.txt")):
        if ".venv" not in str(path):
            assert "litellm" not in path.read_text(encoding="utf-8")


# The page


def read_tests() -> dict[str, str]:
    """Name of every test to its source with its decorators' cases, of all tests of that name."""
    found: dict[str, str] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
                source = "\n".join(lines[first - 1 : node.end_lineno])
                found[node.name] = found.get(node.name, "") + source
    return found


PAGE = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
ROWS = [line for line in PAGE.splitlines() if re.match(r"\| (CVE|GHSA|PYSEC|PR)", line)]


@pytest.fixture(scope="module")
def tests() -> dict[str, str]:
    return read_tests()


def test_every_test_that_the_page_names_exists(tests) -> None:
    assert set(re.findall(r"`(test_\w+)`", PAGE)) <= tests.keys()


@pytest.mark.parametrize("row", ROWS)
def test_every_case_names_tests_that_name_the_case(tests, row) -> None:
    """Or says that it does not apply."""
    _, case, _, named, _ = row.split("|")
    names = re.findall(r"`(test_\w+)`", named)
    ids = re.findall(r"(?:CVE-\d+|GHSA|PYSEC-\d+)-[\w-]+", case)
    text = "".join(tests[name] for name in names)
    assert "does not apply" in named or [id_ for id_ in ids if id_ not in text] == []
