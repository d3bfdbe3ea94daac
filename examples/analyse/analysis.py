"""The shape of Python source: lines, functions, classes, imports, and the complexity of each function.

Complexity is McCabe's: 1, plus 1 for every point where the way through a function parts: `if`, `elif`, a
conditional expression, `for`, `while`, `except`, `case`, each further operand of `and` and `or`, each `for` and
`if` of a comprehension. A function within another counts for itself; a lambda counts for the function around it.

Nothing here recurses: test data in the standard library nests deeper than the interpreter's stack.
"""

from __future__ import annotations

import ast
import io
import tokenize
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)


class Unparsable(Exception):
    """Raised when a file cannot be read as Python; `line` and `column` (from 1) and `text` say where, if known."""

    def __init__(self, message: str, *, line: int | None = None, column: int | None = None, text: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.column = column
        self.text = text


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """What many summaries come to. `imports` counts the different modules, `complexity` sums over functions."""

    files: int
    lines: int
    functions: int
    classes: int
    imports: int
    complexity: int
    highest_complexity: int


def read(path: str) -> str:
    """The text of a Python file, in the encoding it declares. Raises OSError, and Unparsable where it lies."""
    with open(path, "rb") as file:
        data = file.read()
    try:
        text = data.decode(_encoding(data))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise Unparsable(f"not {error.encoding}: {error.reason}", line=line, column=column) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def summarise(source: str, filename: str) -> dict[str, Any]:
    """The shape of `source`, as JSON. Raises Unparsable.

    `complexity` has an entry for each function, by its qualified name; where several have the same (a property
    and its setter, say) it is the highest of theirs. `imports` are the names of modules, sorted.
    """
    survey = _Survey()
    survey.walk(_parse(source, filename))
    return {
        "path": filename,
        "lines": source.count("\n") + (not source.endswith("\n") and source != ""),
        "functions": len(survey.functions),
        "classes": survey.classes,
        "imports": sorted(survey.imports),
        "complexity": survey.complexity(),
    }


def total(summaries: Iterable[dict[str, Any]]) -> Totals:
    """What `summaries` come to, in whatever order they are."""
    files = lines = functions = classes = complexity = highest = 0
    imports: set[str] = set()
    for summary in summaries:
        files += 1
        lines += summary["lines"]
        functions += summary["functions"]
        classes += summary["classes"]
        imports.update(summary["imports"])
        complexity += sum(summary["complexity"].values())
        highest = max(highest, *summary["complexity"].values(), 0)
    return Totals(
        files=files,
        lines=lines,
        functions=functions,
        classes=classes,
        imports=len(imports),
        complexity=complexity,
        highest_complexity=highest,
    )


def _encoding(data: bytes) -> str:
    """The encoding that `data` declares, as tokenize.open finds it."""
    try:
        return tokenize.detect_encoding(io.BytesIO(data).readline)[0]
    except SyntaxError as error:
        data.decode("utf-8")  # what is wrong with a file that declares nothing, this says better
        line = 1 if b"coding" in data.partition(b"\n")[0] else 2
        raise Unparsable(error.msg, line=line) from None


def _parse(source: str, filename: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the source: invalid escapes, `is` with a literal
            return ast.parse(source, filename)
    except SyntaxError as error:
        text = (error.text or "").strip("\n")[:200]
        raise Unparsable(error.msg, line=error.lineno, column=error.offset, text=text) from None
    except ValueError as error:  # NUL characters, lone surrogates
        raise Unparsable(str(error)) from None
    except (RecursionError, MemoryError):
        raise Unparsable("nested too deep") from None


class _Survey:
    """What one walk through a tree found."""

    def __init__(self) -> None:
        self.functions: list[_Function] = []
        self.classes = 0
        self.imports: set[str] = set()

    def walk(self, tree: ast.Module) -> None:
        waiting: list[tuple[ast.AST, str, _Function]] = [(tree, "", _Function(""))]
        while waiting:
            node, scope, function = waiting.pop()
            for child in ast.iter_child_nodes(node):
                if isinstance(child, _FUNCTIONS):
                    inner = _Function(scope + child.name)
                    self.functions.append(inner)
                    waiting.append((child, f"{inner.name}.<locals>.", inner))
                elif isinstance(child, ast.ClassDef):
                    self.classes += 1
                    waiting.append((child, f"{scope}{child.name}.", function))
                else:
                    self._note(child, function)
                    waiting.append((child, scope, function))

    def complexity(self) -> dict[str, int]:
        highest: dict[str, int] = {}
        for function in self.functions:
            highest[function.name] = max(function.complexity, highest.get(function.name, 0))
        return dict(sorted(highest.items()))

    def _note(self, node: ast.AST, function: _Function) -> None:
        if isinstance(node, _BRANCHES):
            function.complexity += 1
        elif isinstance(node, ast.BoolOp):
            function.complexity += len(node.values) - 1
        elif isinstance(node, ast.comprehension):
            function.complexity += 1 + len(node.ifs)
        elif isinstance(node, ast.Import):
            self.imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            self.imports.add("." * node.level + (node.module or ""))


class _Function:
    """A function's qualified name, and its complexity so far."""

    __slots__ = ("complexity", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.complexity = 1
