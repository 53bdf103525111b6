"""Finding plug-ins (imports nothing) and loading them (one concrete class a file, or an error that names the file)."""

import ast
import dataclasses
import importlib
import inspect
import sys
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from cdbench import api, plugins
from cdbench.config import TEACHER, Scalar
from cdbench.errors import UserError
from cdbench.files import sha256

Kind = Literal["methods", "tasks"]
_BASES: dict[Kind, type] = {"methods": api.Method, "tasks": api.Task}


def find(kind: Kind) -> dict[str, Path]:
    """Name -> file of every plug-in of this kind, sorted by name. Imports none of them.

    Raises:
        UserError: a folder that CDBENCH_PLUGINS or an entry point names is missing, two files claim one name, or a name is no
            Python name.
    """
    found: dict[str, Path] = {}
    for root, origin in plugins.sources():
        if not root.is_dir():
            raise UserError(f"{origin} names {root}, which is not a folder")
        for path in sorted((root / kind).glob("*.py")):
            name = path.stem
            if name.startswith("_"):
                continue
            _require_name(path)
            if name in found:
                raise UserError(f"two {kind} are called '{name}': {found[name]} and {path}; rename one of the files")
            found[name] = path
    return dict(sorted(found.items()))


def _require_name(path: Path) -> None:
    if not path.stem.isidentifier() or path.stem == TEACHER:
        raise UserError(f"{path}: '{path.stem}' cannot be the name of a plug-in; use letters, digits and '_'")


def check_file(path: Path) -> None:
    """Checks a plug-in file without importing it.

    Raises:
        UserError: its name is no plug-in's, it cannot be parsed, or it imports the package's internals or a file beside it.
    """
    if path.suffix != ".py" or path.stem.startswith("_"):
        raise UserError(f"{path} cannot be a plug-in: its name must end in .py and not begin with '_'")
    _require_name(path)
    _refuse_internals(path, _parse(path))


def locate(kind: Kind, name: str) -> Path:
    """The file of one plug-in.

    Raises:
        UserError: there is none of that name; the message lists those there are.
    """
    found = find(kind)
    if name not in found:
        raise UserError(f"unknown {kind[:-1]} '{name}'; there are: {', '.join(found)}")
    return found[name]


def _parse(path: Path) -> ast.Module:
    try:
        source = path.read_text()
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    if not source.strip():
        raise UserError(f"{path} is empty; a plug-in file holds one class (see CONTRIBUTING.md)")
    try:
        return ast.parse(source)
    except SyntaxError as error:
        raise UserError(f"{path}, line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:  # null bytes; nested deeper than the parser goes
        raise UserError(f"{path} cannot be parsed: {error or type(error).__name__}") from None


def summary(path: Path) -> str:
    """The first line of a plug-in's docstring, read without importing it; says so when the file is broken."""
    try:
        doc = ast.get_docstring(_parse(path))
    except UserError as error:
        return f"BROKEN: {error}"
    return doc.splitlines()[0] if doc else ""


def static_fields(path: Path) -> dict[str, Scalar | None]:
    """The fields of a plug-in's class, read without importing it; None where the default is no constant.

    Other classes of the file, a loss term for one, have fields of their own, which are not the plug-in's.
    """
    found: dict[str, Scalar | None] = {}
    for name, entry in _annotated_fields(path).items():
        value = entry.value.value if isinstance(entry.value, ast.Constant) else None
        found[name] = value if isinstance(value, bool | int | float | str) else None
    return found


def _annotated_fields(path: Path) -> dict[str, ast.AnnAssign]:
    known = {"Method", "ObjectiveMethod", "Task"}
    found: dict[str, ast.AnnAssign] = {}
    for node in _parse(path).body:
        if not isinstance(node, ast.ClassDef) or not {ast.unparse(base).split(".")[-1] for base in node.bases} & known:
            continue
        known.add(node.name)  # a base class of its own in the same file
        for entry in node.body:
            if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
                found[entry.target.id] = entry
    return found


def require_values(method: str, values: Iterable[tuple[str, Scalar]]) -> None:
    """Checks values of hyperparameters against how their fields are annotated, without importing the method.

    What only the method knows, a range for one, shows when it is built. Other methods' hyperparameters are left alone.

    Raises:
        UserError: a value is of another type, or none of those that its field allows.
    """
    fields = _annotated_fields(locate("methods", method))
    for key, value in values:
        if key in fields and (kind := _plain_type(fields[key].annotation)) is not None:
            _checked(method, key, value, kind)


def _checked(method: str, key: str, value: Scalar, kind: Any) -> object:
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise UserError(f"method '{method}', {key} = {value!r}: {error.errors()[0]['msg']}") from None


def _plain_type(annotation: ast.expr) -> Any:
    """The type that a plain annotation names: a scalar, a choice of constants; None for any other."""
    name = ast.unparse(annotation)
    if name in _SCALARS:
        return _SCALARS[name]
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) in ("Literal", "typing.Literal"):
        try:
            choices = ast.literal_eval(annotation.slice)
        except ValueError:
            return None
        return Literal[choices]
    return None


_SCALARS: dict[str, type] = {"bool": bool, "int": int, "float": float, "str": str}


def task_files(name: str, also: Iterable[str] = ()) -> dict[str, Path]:
    """The files that a task's splits depend on, by name: its own, those of its length-shift sets, and `also`.

    Read without importing any; all tasks where the names of the length-shift sets are no constants.
    """
    found = find("tasks")
    shifts = _length_shift(_parse(found[name])) if name in found else ()
    if shifts is None:
        return found
    return {each: path for each, path in found.items() if each in {name, *shifts, *also}}


def _length_shift(tree: ast.Module) -> tuple[str, ...] | None:
    """What a task file assigns to `length_shift`; nothing if it does not, None if that is no constant."""
    targets: list[tuple[ast.expr, ast.expr | None]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            targets += [(target, node.value) for target in node.targets]
        elif isinstance(node, ast.AnnAssign):
            targets.append((node.target, node.value))
    names: list[str] = []
    for target, value in targets:
        if isinstance(target, ast.Name | ast.Attribute) and ast.unparse(target).split(".")[-1] == "length_shift":
            try:
                names += map(str, ast.literal_eval(value)) if value else ()
            except (ValueError, TypeError):
                return None
    return tuple(names)


def plugin_digest(path: Path) -> str:
    """Hash of a plug-in's source, part of a record's code digest."""
    return sha256(path)[:16]


def _refuse_internals(path: Path, tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise _beside(path, node.lineno, ast.unparse(node))
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "cdbench" else [module]
        else:
            continue
        for name in names:
            _refuse_beside(path, node.lineno, name.partition(".")[0])
            if name == "cdbench" or (name.startswith("cdbench.") and name != "cdbench.api"):
                raise UserError(
                    f"{path}, line {node.lineno}: imports {name}; a plug-in imports cdbench.api and what it re-exports"
                )


def _refuse_beside(path: Path, line: int, name: str) -> None:
    found = [path.parent / f"{name}.py", path.parent / name / "__init__.py"]
    if name not in sys.stdlib_module_names and any(file.is_file() for file in found):
        raise _beside(path, line, name)


def _beside(path: Path, line: int, what: str) -> UserError:
    return UserError(
        f"{path}, line {line}: imports a file beside it ({what}); a plug-in is one file, whose hash its records have: put the "
        "code into it, or into a package that is installed"
    )


def load(kind: Kind, name: str) -> type:
    """Imports one plug-in and returns its class.

    Raises:
        UserError: the file is broken, empty, imports the package's internals, holds no or several concrete classes,
            or (methods) is not a frozen dataclass whose fields all have defaults. The message names the file.
    """
    path = locate(kind, name)
    _refuse_internals(path, _parse(path))
    try:
        module = importlib.import_module(f"cdbench.plugins.{kind}.{name}")
    except Exception as error:
        raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    base = _BASES[kind]
    own = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, base) and value.__module__ == module.__name__
    ]
    concrete = [value for value in own if not inspect.isabstract(value)]
    if len(concrete) != 1:
        names = ", ".join(value.__name__ for value in concrete) or "none"
        raise UserError(f"{path} must define exactly one concrete {base.__name__}, found {names}")
    cls = concrete[0]
    if kind == "methods":
        _check_dataclass(path, cls)
    return cls


def _check_dataclass(path: Path, cls: type) -> None:
    params = getattr(cls, "__dataclass_params__", None)
    if "__dataclass_fields__" not in vars(cls) or params is None or not params.frozen:
        raise UserError(f"{path}: {cls.__name__} must be a frozen dataclass (@dataclass(frozen=True))")
    for entry in dataclasses.fields(cls):
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING:
            raise UserError(f"{path}: field '{entry.name}' of {cls.__name__} needs a default")


def make_method(name: str, params: dict[str, bool | int | float | str]) -> api.Method:
    """An instance of a method with some hyperparameters changed from their defaults.

    Raises:
        UserError: no such hyperparameter, or a value of the wrong type.
    """
    cls = load("methods", name)
    hints = typing.get_type_hints(cls)
    fields = {entry.name for entry in dataclasses.fields(cls)}
    checked: dict[str, object] = {}
    for key, value in params.items():
        if key not in fields:
            have = ", ".join(sorted(fields)) or "no hyperparameters"
            raise UserError(f"method '{name}' has no hyperparameter '{key}'; it has: {have}")
        checked[key] = _checked(name, key, value, hints[key])
    method = cls(**checked)
    assert isinstance(method, api.Method)
    return method


def make_task(name: str) -> api.Task:
    """An instance of a task."""
    task = load("tasks", name)()
    assert isinstance(task, api.Task)
    return task
