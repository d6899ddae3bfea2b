"""Finds the source of a function as a syntax tree, and the objects that the names in it refer to."""

from __future__ import annotations
import __future__

import ast
import inspect
import linecache
import pickle
import types
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

from torch import nn

_INDEXED: tuple[Any, ...] = (nn.ModuleList, nn.Sequential, nn.ModuleDict, list, tuple, dict)

# Functions in which a name may be read without being mentioned.
_SEES_LOCALS = frozenset({"locals", "vars", "eval", "exec", "dir"})
_FUTURES = 0
for _name in __future__.all_feature_names:
    _FUTURES |= getattr(__future__, _name).compiler_flag


@dataclass(frozen=True)
class Source:
    """A plain Python function and its definition; `line` is the first one in its file."""

    function: types.FunctionType
    definition: ast.FunctionDef
    line: int

    def copy(self) -> ast.FunctionDef:
        """A copy of the definition that may be modified."""
        # Several times as fast as copy.deepcopy, and every module of a model wants one.
        made: ast.FunctionDef = pickle.loads(self._pickled)
        return made

    @cached_property
    def _pickled(self) -> bytes:
        return pickle.dumps(self.definition, pickle.HIGHEST_PROTOCOL)

    def compiled(self, definition: ast.FunctionDef, bound: dict[str, object]) -> types.FunctionType:
        """Compiles another definition of the function, with the names in `bound` defined in it."""
        function = self.function
        code = _code(definition, function, (*function.__code__.co_freevars, *bound), self.line)
        if code is None:
            raise ValueError(f"{function.__qualname__}: expected a body that compiles")
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        cells.update({name: types.CellType(value) for name, value in bound.items()})
        closure = tuple(cells[name] for name in code.co_freevars)
        made = types.FunctionType(
            code, function.__globals__, function.__name__, function.__defaults__, closure
        )
        made.__kwdefaults__ = function.__kwdefaults__
        made.__qualname__, made.__module__ = function.__qualname__, function.__module__
        made.__doc__ = function.__doc__
        made.__annotations__ = function.__annotations__
        made.__dict__.update(function.__dict__)
        return made


@lru_cache(maxsize=4096)
def source_of(function: object) -> Source | None:
    """None if there is no source or it is not the code that runs: decorated, generated, edited since."""
    if not isinstance(function, types.FunctionType) or hasattr(function, "__wrapped__"):
        return None
    if _SEES_LOCALS & set(function.__code__.co_names):
        return None
    try:
        text, line = inspect.getsource(function), function.__code__.co_firstlineno
        definition = parse(text)
    except (OSError, TypeError, SyntaxError, ValueError):
        return None
    code = _code(definition, function, function.__code__.co_freevars, line)
    if code is None or not _same(code, function.__code__):
        return None
    return Source(function, definition, line)


def parse(text: str) -> ast.FunctionDef:
    """Parses a function's text as it is in its file, indented or not. ValueError: not one plain function."""
    if text[:1].isspace():
        (block,) = ast.parse(f"if True:\n{text}").body
        body = block.body if isinstance(block, ast.If) else []
    else:
        body = ast.parse(text).body
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef) or body[0].decorator_list:
        raise ValueError("text: expected one function without decorators")
    return body[0]


def _code(
    definition: ast.FunctionDef, function: types.FunctionType, free: tuple[str, ...], line: int
) -> types.CodeType | None:
    """The code of a definition in which these names are those of an enclosing function."""
    names = [ast.Assign([ast.Name(name, ast.Store())], ast.Constant(None)) for name in free]
    outer = parse("def _outer(): pass")
    outer.body = [*names, definition]
    module = ast.Module([*_imports(inspect.getsourcefile(function)), outer], [])
    ast.fix_missing_locations(module)
    ast.increment_lineno(outer, line - definition.lineno)
    flags = function.__code__.co_flags & _FUTURES
    try:
        compiled = compile(module, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    for constant in _codes(compiled):
        if constant.co_name == "_outer":
            return next((code for code in _codes(constant) if code.co_name == definition.name), None)
    return None


@lru_cache(maxsize=256)
def _imports(path: str | None) -> tuple[ast.stmt, ...]:
    """The names that a file imports, as statements: attributes of such names are compiled in another way."""
    names: dict[str, None] = {}
    try:
        todo: list[ast.AST] = [ast.parse("".join(linecache.getlines(path or "")))]
    except (SyntaxError, ValueError):  # edited since
        return ()
    while todo:
        node = todo.pop()
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names.update(dict.fromkeys(alias.asname or alias.name.split(".")[0] for alias in node.names))
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            todo.extend(ast.iter_child_nodes(node))
    return tuple(ast.Import([ast.alias(name)]) for name in names if name != "*")


def _codes(code: types.CodeType) -> list[types.CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]


def _same(a: types.CodeType, b: types.CodeType) -> bool:
    """Whether both do the same, wherever they stand."""

    def key(code: types.CodeType) -> tuple[object, ...]:
        names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
        constants = [repr(c) for c in code.co_consts if not isinstance(c, types.CodeType)]
        return (code.co_code, *names, code.co_argcount, code.co_kwonlyargcount, constants)

    inner = list(zip(_codes(a), _codes(b), strict=False))
    return key(a) == key(b) and len(_codes(a)) == len(_codes(b)) and all(_same(x, y) for x, y in inner)


def resolved(path: ast.expr, owner: nn.Module | None, function: types.FunctionType) -> Any:
    """The object that `self.mlp.act` or `F.relu` in a method of `owner` refers to now; None if unknown.

    `owner` is None for functions that are no methods.

    Resolves attributes of modules, global names and constant indices; calls nothing, not even properties.
    """
    if isinstance(path, ast.Name):
        code = function.__code__
        if code.co_argcount and path.id == code.co_varnames[0]:
            return owner
        local = path.id in code.co_varnames or path.id in code.co_cellvars or path.id in code.co_freevars
        return None if local else function.__globals__.get(path.id)
    if isinstance(path, ast.Attribute):
        holder = resolved(path.value, owner, function)
        if isinstance(holder, nn.Module):
            return holder._modules.get(path.attr) or vars(holder).get(path.attr)
        return vars(holder).get(path.attr) if isinstance(holder, types.ModuleType) else None
    if isinstance(path, ast.Subscript) and isinstance(path.slice, ast.Constant):
        holder, index = resolved(path.value, owner, function), path.slice.value
        if any(type(holder).__getitem__ is kind.__getitem__ for kind in _INDEXED if isinstance(holder, kind)):
            try:
                return holder[index]
            except (LookupError, TypeError):
                return None
    return None


def is_path(node: ast.expr) -> bool:
    """Whether a node is a name, possibly with attributes and constant indices."""
    while isinstance(node, (ast.Attribute, ast.Subscript)):
        if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Constant):
            return False
        node = node.value
    return isinstance(node, ast.Name)
