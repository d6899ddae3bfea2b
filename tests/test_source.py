"""The source of a function: what really runs, or nothing; and other bodies for it, otherwise the same."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import linecache
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fusion_helpers import imported
from torch import nn
from torch.nn import functional as F

from sparseinfer._source import Source, parse, source_of

HERE = Path(__file__)


def plain(a: int, b: int = 2, *, c: int = 3, d: list[int] = []) -> Any:  # noqa: B006
    """Something to read."""
    total = a + b
    return total * c, d


def calls_imported(x: Any) -> Any:
    return F.relu(torch.neg(x))


def with_function_inside(x: int) -> int:
    def inner(y: int) -> int:
        return y + x

    return inner(x) + (lambda z: z * x)(2) + sum(i * x for i in range(3))


def with_constants(x: float) -> Any:
    return x in {1, 2, 3}, -0.0, 1e400, b"bytes", (1, 2.5), True, 1, ..., f"{x!r:>4}"


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args) + 1

    return wrapper


@decorated
def behind_a_decorator(x: int) -> int:
    return x


def closing() -> tuple[Callable[[], int], Callable[[int], None]]:
    count = 1

    def read() -> int:
        return count * 10

    def write(value: int) -> None:
        nonlocal count
        count = value

    return read, write


class Base(nn.Module):
    def forward(self, x: int) -> Any:
        return "base", x


class Derived(Base):
    def forward(self, x: int) -> Any:
        return super().forward(x), __class__, self  # type: ignore[name-defined]

    @property
    def doubled(self) -> int:
        return 2

    @staticmethod
    def static(x: int) -> int:
        return x

    def mangled(self) -> Any:
        return self.__private


class Inherits(Derived):
    pass


class Documented:
    def with_many_lines(self, x: int) -> Any:
        """Says what it does.

        Args:
            x: more than one line of it
        """
        text = """
            Also other text
          of several lines.
        """
        return text, x


lambda_alone = lambda x: x + 1  # noqa: E731


def makes_a_lambda() -> Any: return lambda x: x + 1  # fmt: skip


def looks(x: int) -> Any:
    return locals()


def again(function: Any) -> Any:
    """The function with its own body, compiled once more."""
    source = source_of(function)
    assert source is not None
    return source.compiled(source.copy(), {})


class TestFound:
    @pytest.mark.parametrize(
        "function",
        [
            plain,
            calls_imported,
            with_function_inside,
            with_constants,
            Derived.forward,
            Inherits.forward,
            Documented.with_many_lines,
            closing()[0],
            closing()[1],
            nn.ReLU.forward,
            nn.Linear.forward,
            nn.TransformerEncoderLayer.forward,
            nn.LSTM.forward,
            nn.Module.__setattr__,
        ],
        ids=lambda f: f.__qualname__,
    )
    def test_what_runs(self, function: Any) -> None:
        source = source_of(function)
        assert isinstance(source, Source)
        assert source.definition.name == function.__name__
        assert source.function is function
        assert source.line == function.__code__.co_firstlineno

    @pytest.mark.parametrize(
        "function",
        [
            behind_a_decorator,
            lambda_alone,
            makes_a_lambda(),
            looks,
            Derived.static,
            Derived.doubled,
            Derived().forward,  # a bound method
            Derived,
            len,
            torch.relu,
            functools.partial(plain, 1),
            Derived.mangled,  # its names are others in the class
            None,
            3,
        ],
        ids=lambda f: getattr(f, "__qualname__", str(f)),
    )
    def test_nothing(self, function: Any) -> None:
        assert source_of(function) is None

    def test_code_without_a_file(self) -> None:
        names: dict[str, Any] = {}
        exec("def f(x):\n    return x + 1\n", names)
        assert source_of(names["f"]) is None

    def test_code_that_names_the_wrong_file(self) -> None:
        """Another function stands at that line."""
        names: dict[str, Any] = {}
        exec(
            compile(
                "\n" * (plain.__code__.co_firstlineno - 1) + "def plain(a):\n    return a + 1\n", HERE, "exec"
            ),
            names,
        )
        assert names["plain"](1) == 2
        assert source_of(names["plain"]) is None

    def test_code_that_another_tool_keeps_the_lines_of(self) -> None:
        """As notebooks and torch.fx do it."""
        text = "def f(x):\n    return x + 1\n"
        name = "<kept lines>"
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
        names: dict[str, Any] = {}
        exec(compile(text, name, "exec"), names)
        try:
            source = source_of(names["f"])
            assert source is None or again(names["f"])(1) == 2
        finally:
            del linecache.cache[name]


TEXT = """
class Net:
    def forward(self, x):
        y = self.fc(x)
        return self.act(y)

    def other(self):
        return 1
"""


def edit(path: Path, text: str) -> None:
    """Write, with a time of its own, as an editor does some seconds later."""
    path.write_text(text)
    later = path.stat().st_mtime + 10
    os.utime(path, (later, later))


class TestEdited:
    @pytest.mark.parametrize(
        "edited",
        [
            TEXT.replace("self.fc(x)", "self.fc(-x)"),
            TEXT.replace("self.fc(x)", "self.cf(x)"),
            TEXT.replace("self.act(y)", "self.fc(y)"),
            TEXT.replace("return self.act(y)", "return self.act(x)"),
            TEXT.replace("(self, x)", "(self, x, z)"),
            TEXT.replace("(self, x)", "(self, *, x)"),
            TEXT.replace("    def forward", "    @staticmethod\n    def forward"),
            "\n\n\n\n" + TEXT,
            TEXT.replace(
                "class Net:", "class Net:\n    def forward(self, x): return 0\n    def another(self, x):"
            ),
            "",
            "x = (",
        ],
    )
    def test_since_it_was_imported(self, tmp_path: Path, edited: str) -> None:
        path = tmp_path / "net.py"
        module = imported(path, TEXT)
        edit(path, edited)
        source = source_of(module.Net.forward)
        # Moved, it may be found at its new place; anything else is not what runs.
        assert source is None or ast.unparse(source.definition) == ast.unparse(parse(inspect.cleandoc(NET)))

    def test_to_the_same(self, tmp_path: Path) -> None:
        path = tmp_path / "net.py"
        module = imported(path, TEXT)
        edit(path, TEXT + "\n# a remark\n")
        assert source_of(module.Net.forward) is not None

    def test_after_it_was_read(self, tmp_path: Path) -> None:
        path = tmp_path / "net.py"
        module = imported(path, TEXT)
        source = source_of(module.Net.forward)
        assert source is not None
        before = ast.dump(source.copy())
        edit(path, TEXT.replace("self.fc(x)", "self.fc(-x)"))
        assert ast.dump(source.copy()) == before

    def test_gone(self, tmp_path: Path) -> None:
        path = tmp_path / "net.py"
        module = imported(path, TEXT)
        path.unlink()
        linecache.clearcache()
        assert source_of(module.Net.forward) is None

    def test_only_compiled(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A package that ships without its source."""
        import py_compile

        source = tmp_path / "shipped_without_source.py"
        source.write_text(TEXT)
        py_compile.compile(str(source), cfile=str(tmp_path / "shipped_without_source.pyc"))
        source.unlink()
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module("shipped_without_source")
        assert source_of(module.Net.forward) is None


NET = """
def forward(self, x):
    y = self.fc(x)
    return self.act(y)
"""


class TestCompiled:
    def test_does_the_same(self) -> None:
        assert again(plain)(1) == plain(1) == (9, [])
        assert again(plain)(1, 4, c=5) == plain(1, 4, c=5)
        assert again(with_function_inside)(3) == with_function_inside(3)
        assert repr(again(with_constants)(3)) == repr(with_constants(3))
        documented = Documented()
        made = again(Documented.with_many_lines)
        assert made(documented, 1) == documented.with_many_lines(1)
        assert made.__doc__ == Documented.with_many_lines.__doc__
        x = torch.linspace(-1, 1, 5)
        assert torch.equal(again(calls_imported)(x), calls_imported(x))

    def test_what_it_says_of_itself(self) -> None:
        plain.mark = "kept"  # type: ignore[attr-defined]
        made = again(plain)
        for name in ("__name__", "__qualname__", "__module__", "__doc__", "__annotations__", "__dict__"):
            assert getattr(made, name) == getattr(plain, name), name
        assert made.__globals__ is plain.__globals__
        assert inspect.signature(made) == inspect.signature(plain)
        assert inspect.getsource(made) == inspect.getsource(plain)

    def test_defaults_are_the_same_objects(self) -> None:
        again(plain)(1)[1].append(7)
        try:
            assert plain(1)[1] == [7]
        finally:
            plain(1)[1].clear()

    def test_annotations_are_not_evaluated(self, tmp_path: Path) -> None:
        text = (
            "from __future__ import annotations\ndef f(x: Unknown) -> Other:\n    y: More = x\n    return y\n"
        )
        module = imported(tmp_path / "future.py", text)
        assert again(module.f)(3) == 3
        assert again(module.f).__annotations__ == {"x": "Unknown", "return": "Other"}

    def test_cells_are_shared(self) -> None:
        read, write = closing()
        reads_again, writes_again = again(read), again(write)
        write(5)
        assert reads_again() == 50
        writes_again(6)
        assert read() == 60

    def test_super_and_class(self) -> None:
        module = Inherits()
        made = again(Inherits.forward)
        assert made(module, 1) == Derived.forward(module, 1) == (("base", 1), Derived, module)

    def test_names_can_be_bound(self) -> None:
        source = source_of(closing()[0])
        assert source is not None
        definition = source.copy()
        definition.body = ast.parse("return count, _bound, _bound()").body  # type: ignore[assignment]
        made = source.compiled(ast.fix_missing_locations(definition), {"_bound": lambda: "called"})
        count, bound, result = made()
        assert (count, result) == (1, "called")
        assert bound() == "called"
        assert "_bound" not in made.__globals__

    def test_copies_may_be_changed(self) -> None:
        source = source_of(plain)
        assert source is not None
        source.copy().body.clear()
        assert len(source.copy().body) == len(source.definition.body) == 3

    def test_a_body_that_does_not_compile(self) -> None:
        source = source_of(plain)
        assert source is not None
        definition = source.copy()
        definition.body = [ast.Break()]
        with pytest.raises(ValueError, match="plain: expected a body that compiles"):
            source.compiled(ast.fix_missing_locations(definition), {})

    def test_tracebacks_point_to_the_line(self) -> None:
        for function, line in ((plain, "total = a + b"), (calls_imported, "return F.relu(torch.neg(x))")):
            with pytest.raises(TypeError) as e:
                again(function)("text")
            frame = traceback.extract_tb(e.value.__traceback__)[1]
            assert Path(frame.filename) == HERE
            assert frame.line == line
            assert frame.name == function.__name__


@pytest.mark.parametrize(
    "text",
    [
        "x = 1",
        "def f(): pass\ndef g(): pass",
        "@d\ndef f(): pass",
        "async def f(): pass",
        "class A: pass",
        "",
    ],
)
def test_parse_takes_one_plain_function(text: str) -> None:
    with pytest.raises(ValueError, match="expected one function without decorators"):
        parse(text)
