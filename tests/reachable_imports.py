"""Which third-party packages code can reach: followed through the source, imports within functions included."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = (("components", "svdflow"), ("pipelines", "svdflow.pipelines"))


@cache
def modules() -> dict[str, Path]:
    """Every module of svdflow by name."""
    found = {}
    for room, package in ROOMS:
        for path in (REPOSITORY / room).rglob("*.py"):
            name = ".".join((package, *path.relative_to(REPOSITORY / room).with_suffix("").parts))
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def tree_of(name: str) -> ast.Module:
    """A module's source, parsed."""
    return ast.parse(modules()[name].read_text())


@cache
def component_bodies() -> dict[str, list[tuple[str, ast.FunctionDef]]]:
    """Image to the component functions whose ``base_image`` it is, with their modules."""
    found: dict[str, list[tuple[str, ast.FunctionDef]]] = {}
    for name, path in modules().items():
        for node in tree_of(name).body if path.name.startswith("component") else ():
            for decorator in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                options = {each.arg: each.value for each in getattr(decorator, "keywords", ())}
                if "base_image" in options:
                    found.setdefault(ast.literal_eval(options["base_image"]), []).append((name, node))
    return found


def imported(tree: ast.AST, name: str, package: bool) -> Iterator[str]:
    """Absolute names of what a tree imports; ``name`` is the module it stands in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = name.split(".") if package else name.split(".")[:-1]
                module = ".".join([*base[: len(base) - node.level + 1], *([module] if module else [])])
            for alias in node.names:
                yield f"{module}.{alias.name}" if f"{module}.{alias.name}" in modules() else module


def third_party(image: str, entries: list[str]) -> dict[str, str]:
    """Top-level package to the module that imports it, for an image: from its components' bodies and its entries.

    An entry that is a package stands for all modules below it.
    """
    known = modules()
    todo = [name for name in known for entry in entries if name == entry or name.startswith(f"{entry}.")]
    found = {"kfp": "kfp's executor"} if image in component_bodies() else {}
    for name, body in component_bodies().get(image, ()):
        todo += imported(body, name, False)
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        while name.startswith("svdflow") and name not in known:
            name = name.rpartition(".")[0]
        if name in seen or name not in known:
            continue
        seen.add(name)
        todo.append(name.rpartition(".")[0])  # a package is imported before what is in it
        for each in imported(tree_of(name), name, known[name].name == "__init__.py"):
            if each.split(".")[0] == "svdflow":
                todo.append(each)
            elif each.split(".")[0] not in sys.stdlib_module_names:
                found.setdefault(each.split(".")[0], name)
    return found
