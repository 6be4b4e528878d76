"""Who may import whom, as docs/architecture.md promises; read from the source, nothing is run."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PACKAGES = ("builders", "python_backend", "openai_frontend", "triton_vlm")
# The scheduler and what it talks about: plain Python that can be reasoned about and tested alone.
PURE = (
    *("errors", "config", "spec", "sampling_params", "scheduler", "choices", "prefix_cache"),
    *("tensor_names", "reasoning", "tool_calls", "tool_grammar"),
)


@dataclass(frozen=True)
class Layer:
    """What some files may import.

    Attributes:
        files: globs, relative to the root.
        allowed: modules besides the standard library; None: all that are not forbidden.
        forbidden: modules that are refused whatever `allowed` says.
        top_level_only: imports inside functions are free.
    """

    files: tuple[str, ...]
    allowed: tuple[str, ...] | None = None
    forbidden: tuple[str, ...] = ()
    top_level_only: bool = False
    exceptions: tuple[str, ...] = field(default=())


LAYERS = {
    "the proxy knows no engine, tokenizer or graph": Layer(
        files=("openai_frontend/**/*.py",),
        allowed=(
            *("fastapi", "starlette", "pydantic", "pydantic_core", "uvicorn", "httpx"),
            *("grpc", "tritonclient", "prometheus_client", "opentelemetry"),
            *("openai_frontend", "python_backend.errors", "python_backend.tensor_names"),
            "python_backend.tool_calls",
        ),
    ),
    "the scheduler and its data know no tensor, thread or Triton": Layer(
        files=tuple(f"python_backend/{name}.py" for name in PURE),
        allowed=tuple(f"python_backend.{name}" for name in PURE),
        forbidden=("threading", "asyncio", "queue", "concurrent", "multiprocessing"),
    ),
    "a family knows no runtime and no scheduler": Layer(
        files=("python_backend/families/*.py",),
        forbidden=("python_backend.runtimes", "python_backend.scheduler", "python_backend.engine"),
    ),
    "a runtime knows no family": Layer(
        files=("python_backend/runtimes/*.py",),
        forbidden=("python_backend.families", "python_backend.scheduler", "transformers"),
    ),
    "serving knows no builder, proxy or command line": Layer(
        files=("python_backend/**/*.py",),
        forbidden=("builders", "openai_frontend", "triton_vlm", "fastapi", "onnx", "onnxscript"),
    ),
    "one place knows Triton's Python API": Layer(
        files=tuple(f"{package}/**/*.py" for package in PACKAGES),
        forbidden=("triton_python_backend_utils",),
        exceptions=("python_backend/triton_io.py", "python_backend/stages/*.py"),
    ),
    "the builder knows no proxy, command line or scheduler": Layer(
        files=("builders/**/*.py",),
        forbidden=(
            *("openai_frontend", "triton_vlm"),
            *("python_backend.scheduler", "python_backend.engine", "python_backend.engine_loop"),
        ),
    ),
    "the command line imports what it needs when it runs": Layer(
        files=("triton_vlm/**/*.py",),
        allowed=("typer", "rich", "httpx", "triton_vlm"),
        top_level_only=True,
    ),
    "nothing needs torch but the comparison with Hugging Face": Layer(
        files=(*(f"{package}/**/*.py" for package in PACKAGES), "examples/**/*.py"),
        forbidden=("torch", "torchvision"),
        exceptions=("builders/verify.py", "builders/hf_reference.py"),
    ),
}


def imported_modules(tree: ast.Module, *, top_level_only: bool = False) -> Iterator[str]:
    """Full names of what a module imports: `a.b.c` for `from a.b import c`."""
    for node in _without_functions(tree) if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _without_functions(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        is_type_checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not is_type_checking:
            yield child
            yield from _without_functions(child)


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def violations(layer: Layer) -> list[str]:
    files = {path for pattern in layer.files for path in ROOT.glob(pattern)}
    files -= {path for pattern in layer.exceptions for path in ROOT.glob(pattern)}
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sorted(files)
        for module in imported_modules(
            ast.parse(path.read_text(encoding="utf-8")), top_level_only=layer.top_level_only
        )
        if is_refused(module, layer)
    ]


def is_refused(module: str, layer: Layer) -> bool:
    if is_within(module, layer.forbidden):
        return True
    is_standard = module.partition(".")[0] in sys.stdlib_module_names
    return layer.allowed is not None and not is_standard and not is_within(module, layer.allowed)


@pytest.mark.parametrize("name", LAYERS)
def test_imports_stay_inside_their_layer(name: str) -> None:
    assert violations(LAYERS[name]) == []


def test_a_forbidden_import_is_found_wherever_it_hides() -> None:
    tree = ast.parse("def f():\n    from torch.nn import functional\nimport torch\n")
    layer = Layer(files=(), forbidden=("torch",))
    found = [module for module in imported_modules(tree) if is_refused(module, layer)]
    assert sorted(found) == ["torch", "torch.nn.functional"]
    assert list(imported_modules(tree, top_level_only=True)) == ["torch"]
