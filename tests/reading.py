"""Who reads which field of a class: followed through annotations and assignments, module by module, without running anything. Names count
for a whole module, so that more may be seen than is there, and never less."""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path

from tests.house import parsed

Function = ast.FunctionDef | ast.AsyncFunctionDef
#: (class, field)
Field = tuple[str, str]
#: class -> field -> class of its value, "" for none of them.
Classes = Mapping[str, Mapping[str, str]]


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def parameters(function: Function) -> list[ast.arg]:
    every = function.args
    return [arg for arg in (*every.posonlyargs, *every.args, every.vararg, *every.kwonlyargs, every.kwarg) if arg is not None]


def unused(function: Function) -> set[str]:
    """Parameters that the body never looks at."""
    body = [node for statement in function.body for node in ast.walk(statement)]
    seen = {node.id for node in body if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    return {arg.arg for arg in parameters(function)} - seen - {"self", "cls"}


def classes(home: Path) -> dict[str, dict[str, str]]:
    """All of a module that have annotated fields."""
    nodes = [node for node in parsed(home).body if isinstance(node, ast.ClassDef)]
    named = {node.name for node in nodes}
    found = {}
    for node in nodes:
        fields = {
            item.target.id: item.annotation for item in node.body if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
        }
        found[node.name] = {field: next(iter(words(kind) & named), "") for field, kind in fields.items()}
    return found


@cache
def words(annotation: ast.expr | None) -> frozenset[str]:
    """Names of an annotation; `config.Limits` is Limits."""
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        annotation = ast.parse(annotation.value, mode="eval").body
    nodes = list(ast.walk(annotation)) if annotation is not None else []
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    return frozenset(names | {node.attr for node in nodes if isinstance(node, ast.Attribute)})


@cache
def told(path: Path) -> list[tuple[ast.AST, bool]]:
    """Nodes of a module that say or use what something is, and whether they are fields of a class."""
    nodes = list(ast.walk(parsed(path)))
    fields = {id(item) for node in nodes if isinstance(node, ast.ClassDef) for item in node.body}
    plain = [node for node in nodes if not isinstance(node, ast.arg) or node.annotation is not None]
    return [(node, id(node) in fields) for node in plain if isinstance(node, ast.arg | ast.AnnAssign | ast.Assign | ast.Attribute)]


@cache
def imported(path: Path) -> list[tuple[str, str]]:
    """(name here, name there)"""
    nodes = [node for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom)]
    return [(alias.asname or alias.name, alias.name) for node in nodes for alias in node.names]


class Reader:
    """Looks through modules for reads of what `known` has."""

    def __init__(self, known: Classes, home: Path) -> None:
        self.known = known
        self.home = home
        self.reads: set[Field] = set()
        #: Attributes anywhere -> classes that their values may have; and the same for names, by module.
        self._attributes: dict[str, set[str]] = defaultdict(set)
        self._names: dict[Path, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
        #: Names that the module at hand gives the classes; those that it reaches through theirs.
        self._aliases: dict[str, str] = {}
        self._dotted: set[str] = set()

    def look(self, modules: Iterable[Path]) -> set[Field]:
        """Fields that are read in these modules, or by methods and properties of the classes themselves that are."""
        modules = [path for path in modules if path != self.home]
        before = -1
        while before != (before := self._size()):
            for path in modules:
                self._module(path)
        own = [(node.name, f) for node in parsed(self.home).body if isinstance(node, ast.ClassDef) for f in functions(node)]
        for owner, method in own:
            if (owner, method.name) in self.reads:
                said = {n.attr for n in ast.walk(method) if isinstance(n, ast.Attribute) and ast.unparse(n.value) == "self"}
                self.reads |= {(owner, field) for field in said}
        return {(owner, field) for owner, field in self.reads if field in self.known.get(owner, ())}

    def _size(self) -> int:
        return sum(map(len, self._attributes.values())) + sum(len(kinds) for names in self._names.values() for kinds in names.values())

    def _module(self, path: Path) -> None:
        names = self._names[path]
        self._aliases = {local: name for local, name in imported(path) if name in self.known}
        reached = any(name == self.home.stem for _, name in imported(path))
        self._dotted = set(self.known) if reached else set()
        for node, of_class in told(path):
            if isinstance(node, ast.arg):
                names[node.arg] |= self._annotated(node.annotation)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                (self._attributes if of_class else names)[node.target.id] |= self._annotated(node.annotation)
            elif isinstance(node, ast.Assign):
                for target in node.targets:
                    self._assign(target, node.value, names)
            elif isinstance(node, ast.Attribute):
                self._kinds(node, names)

    def _annotated(self, annotation: ast.expr | None) -> set[str]:
        said = words(annotation)
        return {self._aliases[word] for word in said & self._aliases.keys()} | (said & self._dotted)

    def _assign(self, target: ast.expr, value: ast.expr, names: dict[str, set[str]]) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, said in zip(target.elts, value.elts, strict=False):
                self._assign(one, said, names)
        elif isinstance(target, ast.Name):
            names[target.id] |= self._kinds(value, names)
        elif isinstance(target, ast.Attribute):
            self._attributes[target.attr] |= self._kinds(value, names)

    def _kinds(self, node: ast.expr, names: dict[str, set[str]]) -> set[str]:
        """Classes that a value may have; what is read on the way to it counts as read."""
        if isinstance(node, ast.Name):
            return set(names.get(node.id, ()))
        if not isinstance(node, ast.Attribute):
            return set()
        owners = self._kinds(node.value, names)
        self.reads |= {(owner, node.attr) for owner in owners}
        inner = {self.known[owner].get(node.attr, "") for owner in owners} - {""}
        return inner or (set() if owners else set(self._attributes.get(node.attr, ())))
