"""The house has floors: imports go downwards only, wherever they stand, and files and functions stay short."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import drift_cli

ROOT = Path(drift_cli.__file__).parent
ORDER = (
    "errors",
    "files",
    "names",
    "segments",
    "spec",
    "pool",
    "axis",
    "streams",
    "display",
    "screen",
    "plugins",
    "store",
    "transcripts",
    "settings",
    "demo_model",
    "models",
    "chat",
    "analysis",
    "engine",
    "measuring",
    "workers",
    "launch",
    "running",
    "results",
    "interchange",
    "api",
    "commands",
    "__main__",
)
"""Packages and single modules, from the ground up: each imports only what stands before it. `__init__` is the public door, and may name any of them."""
EXCEPTIONS: set[tuple[str, str]] = set()
"""Importer and imported, for each import that goes upwards, or that `FORBIDDEN` forbids, and is known. This list only shrinks."""
FORBIDDEN = {("engine", "chat"), ("engine", "store"), ("store", "workers")}
MOST_LINES, MOST_FUNCTION_LINES = 300, 40
LONG_FILES: set[str] = set()
LONG_FUNCTIONS = {
    "analysis.verdict.answer",
    "commands.measure.measure",
    "engine.kernels.triton.attention_kernel._chunk",
    "engine.kernels.triton.attention_kernel._decode_split",
    "engine.kernels.triton.draw_kernel._draw",
}
"""Known, and no more than five. These lists only shrink."""


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(name: str, tree: ast.AST) -> Iterator[str]:
    """Modules of ours, and the first names of others, that a module imports anywhere: at its top, in functions, for type checkers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
                for _ in range(node.level - 1):
                    package = package.rpartition(".")[0]
                base = f"{package}.{base}" if base else package
            below = [f"{base}.{alias.name}" for alias in node.names if f"{base}.{alias.name}" in MODULES]
            yield from below
            if len(below) < len(node.names) and base != "drift_cli":  # else `from drift_cli import __version__`
                yield base


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _graph() -> dict[tuple[str, str], list[str]]:
    """Importer and imported, as floors, and the imports that make them so."""
    edges: dict[tuple[str, str], list[str]] = {}
    for name, path in MODULES.items():
        if name == "drift_cli":
            continue
        here = name.split(".")[1]
        for target in _imports(name, _tree(path)):
            parts = target.split(".")
            if parts[0] == "drift_cli" and len(parts) > 1 and parts[1] != here:
                edges.setdefault((here, parts[1]), []).append(f"{name} imports {target}")
    return edges


def test_every_module_stands_on_a_floor() -> None:
    there = {name.split(".")[1] for name in MODULES if name != "drift_cli"}
    assert there <= set(ORDER)


def test_imports_go_downwards_only() -> None:
    graph = _graph()
    upwards = {edge for edge in graph if ORDER.index(edge[1]) >= ORDER.index(edge[0])} | (graph.keys() & FORBIDDEN)
    new = [line for edge in sorted(upwards - EXCEPTIONS) for line in graph[edge]]
    assert new == []


def test_an_upward_import_is_seen_wherever_it_stands() -> None:
    code = "def f():\n    from drift_cli.commands import stats\nif TYPE_CHECKING:\n    import drift_cli.api\nfrom drift_cli import models\nfrom . import run\n"
    assert set(_imports("drift_cli.store.paths", ast.parse(code))) >= {
        "drift_cli.commands.stats",
        "drift_cli.api",
        "drift_cli.models",
        "drift_cli.store.run",
    }


@pytest.mark.parametrize("package", ["analysis", "interchange", "settings", "store", "transcripts", "workers"])
def test_a_package_without_torch_loads_none(package: str) -> None:
    """None of its modules imports torch anywhere, and nothing that is loaded with them does when it is loaded."""
    start = [name for name in MODULES if name.startswith(f"drift_cli.{package}")]
    seen, todo = set(start), [(name, name, _imports(name, _tree(MODULES[name]))) for name in start]
    while todo:
        _name, way, targets = todo.pop()
        for target in targets:
            assert target.partition(".")[0] != "torch", f"{way}: torch"
            for found in {target, target.rpartition(".")[0]} & MODULES.keys() - seen - {"drift_cli"}:
                seen.add(found)
                todo.append((found, f"{way} > {found}", _imports(found, _loaded(_tree(MODULES[found])))))


def _loaded(tree: ast.Module) -> ast.Module:
    """What of a module is executed when it is imported."""
    kept = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef) and not _for_type_checkers(node)]
    return ast.Module(kept, [])


def _for_type_checkers(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_files_are_short() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES.values()}
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES and name not in LONG_FILES} == {}


def test_functions_are_short() -> None:
    found = {}
    for name, path in MODULES.items():
        for node in ast.walk(_tree(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MOST_FUNCTION_LINES:
                    found[f"{name}.{node.name}".removeprefix("drift_cli.")] = lines
    assert {name: lines for name, lines in found.items() if name not in LONG_FUNCTIONS} == {}
