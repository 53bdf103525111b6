"""What is tested: a function of two representations, or a class that is fed batches. Ours or anybody's."""

import importlib
import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from cdbench.errors import UserError
from cdbench.similarity import StreamingCKA, cka_matrix, linear_cka
from cdbench.similarity.conformance.broken import Broken, told
from cdbench.similarity.conformance.causes import Cause

Arrays = Literal["torch", "numpy"]
Kind = Literal["function", "stream"]


class Call(Protocol):
    """CKA of two representations by either estimator, as the implementation returns it."""

    def __call__(self, x: Tensor, y: Tensor, debiased: bool) -> object: ...


@dataclass(frozen=True)
class Subject:
    """An implementation under test.

    Attributes:
        name: what the user calls it.
        call: the implementation behind one signature.
        estimators: which of biased (False) and debiased (True) it claims to be.
        arrays: what it takes; NumPy ones have no gradient and no half precision.
        kind: a function, or a class that is fed batches.
        gradient: whether it is meant to be differentiated.
    """

    name: str
    call: Call = field(repr=False)
    estimators: tuple[bool, ...]
    arrays: Arrays = "torch"
    kind: Kind = "function"
    gradient: bool = True

    def value(self, x: Tensor, y: Tensor, debiased: bool) -> float:
        """The value as a number.

        Raises:
            Broken: not one finite number, or an exception on input that has a CKA.
        """
        given = x.clone(), y.clone()  # whoever changes them is judged on what was given
        return _number(self.result(*given, debiased), _shapes(x, y))

    def fed(self, x: Tensor, y: Tensor, debiased: bool, parts: Sequence[slice]) -> tuple[float, float, float]:
        """The values of a stream after half of the batches, after all, and when it is asked again.

        Raises:
            Broken: as `value`.
        """
        assert isinstance(self.call, Stream), "a function is not fed"
        of, found = f"{len(parts)} batches of {_shapes(x, y)}", []
        looks = self.call.looked_at(x, y, debiased, parts)
        for when in ("after half", "after all", "asked again"):
            try:
                found.append(_number(next(looks), of))
            except (Exception, SystemExit) as error:
                seen = f"raised {type(error).__name__} on {of}, {when}: {told(error)}"
                if isinstance(error, Broken):
                    seen = f"{error.seen}, {when}"
                causes = [Cause.CONSUMED] if when == "asked again" else []
                raise Broken(seen, *causes, failed=not causes) from error
        middle, end, repeated = found
        return middle, end, repeated

    def gradients(self, x: Tensor, y: Tensor, debiased: bool) -> tuple[Tensor | None, Tensor | None]:
        """The gradient of the value with respect to both; None where none arrives.

        Raises:
            Broken: an exception, or a value without a graph.
        """
        x, y = (value.detach().clone().requires_grad_() for value in (x, y))
        result = self.result(x, y, debiased)
        if not isinstance(result, Tensor) or not result.requires_grad:
            raise Broken("the result carries no gradient", Cause.DETACHED)
        try:
            one, two = torch.autograd.grad(result.sum(), (x, y), allow_unused=True)
        except (Exception, SystemExit) as error:
            raise Broken(f"the backward pass raised on {_shapes(x, y)}: {told(error)}", Cause.GRADIENT) from error
        return one, two

    def result(self, x: Tensor, y: Tensor, debiased: bool) -> object:
        """What it returns, as it is.

        Raises:
            Broken: an exception.
        """
        try:
            return self.call(x, y, debiased)
        except (Exception, SystemExit) as error:
            said = told(error)
            text = f"raised {type(error).__name__} on {_shapes(x, y)}: {said}"
            causes = []
            if x.requires_grad and "leaf Variable" in said:
                causes = [Cause.IN_PLACE]
            elif x.requires_grad and "requires grad" in said:
                # A tensor that requires a gradient does not turn into a number or an array: the graph ends there.
                causes = [Cause.DETACHED]
            raise Broken(text, *causes, failed=not causes) from error


def _number(result: object, of: str) -> float:
    number = number_of(result)
    if number is None:
        raise Broken(f"returned {_describe(result)} for {of}, expected one number", failed=True)
    if not math.isfinite(number):
        raise Broken(f"returned {number} for {of}", failed=True)
    return number


def _shapes(x: Tensor, y: Tensor) -> str:
    return f"x {tuple(x.shape)} and y {tuple(y.shape)}, {str(x.dtype).removeprefix('torch.')}"


def number_of(result: object) -> float | None:
    """The value of a number, or of an array or tensor with one entry; None for anything else.

    Raises:
        Broken: it has the type of one, and gives no value (on the meta device, sparse, too large for a float).
    """
    try:
        return _value_of(result)
    except Exception as error:
        raise Broken(f"returned a {type(result).__name__} that is no number: {told(error)}", failed=True) from error


def _value_of(result: object) -> float | None:
    if isinstance(result, Tensor | np.ndarray | np.generic):
        if isinstance(result, Tensor):  # half precisions have no NumPy type
            result = result.detach().cpu().to(torch.float64 if result.is_floating_point() else result.dtype).numpy()
        array = np.asarray(result)
        return float(array.item()) if array.size == 1 and array.dtype.kind in "fiu" else None
    return float(result) if isinstance(result, int | float) and not isinstance(result, bool) else None


def _describe(result: object) -> str:
    if isinstance(result, Tensor | np.ndarray | np.generic):
        return f"{type(result).__name__} of shape {tuple(result.shape)}, {str(result.dtype).removeprefix('torch.')}"
    return type(result).__name__


def ours() -> list[Subject]:
    """The estimators of this package, each behind the same signature."""
    both = (False, True)

    def matrix(x: Tensor, y: Tensor, debiased: bool) -> object:
        # In the midst of other layers, so that a mix-up of rows and columns shows.
        others = [torch.sin(torch.arange(x.numel(), dtype=x.dtype)).view(x.shape), x[:, :1] * 2 + 1]
        usable = [layer for layer in others if x.ndim == 2 and len(x) > 4 and bool((layer != layer[0]).any())]
        return cka_matrix([*usable, x], [y], debiased=debiased)[-1, 0]

    return [
        Subject("cdbench.similarity:linear_cka", lambda x, y, debiased: linear_cka(x, y, debiased=debiased), both),
        Subject("cdbench.similarity:cka_matrix", matrix, both, gradient=False),
        streaming("cdbench.similarity:StreamingCKA", Stream(_Ours, "debiased"), both),
    ]


class _Ours:
    """StreamingCKA takes lists of layers; the battery feeds one."""

    def __init__(self) -> None:
        self.stream = StreamingCKA()

    def update(self, x: Tensor, y: Tensor) -> None:
        self.stream.update([x], [y])

    def compute(self, debiased: bool) -> Tensor:
        return self.stream.compute(debiased=debiased)


def batches(n: int) -> list[slice]:
    """Uneven batches over n samples: most of it, a few, the rest."""
    return [slice(a, b) for a, b in pairwise(sorted({0, n // 2, n // 2 + 1, n}))]


@dataclass(frozen=True)
class Stream:
    """A class with update(x, y) and compute() as a function of all samples.

    Attributes:
        factory: makes an empty one.
        switch: the name of compute's parameter for debiased; empty where there is none.
        numpy: it takes arrays.
    """

    factory: Callable[[], Any]
    switch: str = ""
    numpy: bool = False

    def __call__(self, x: Tensor, y: Tensor, debiased: bool) -> object:
        """The value of all samples, fed in `batches`."""
        stream = self.factory()
        if x.ndim == 0 or len(x) != len(y):
            stream.update(x, y)
        self._feed(stream, x, y, batches(len(x)) if len(x) == len(y) else [])
        return self._computed(stream, debiased)

    def looked_at(self, x: Tensor, y: Tensor, debiased: bool, parts: Sequence[slice]) -> Iterator[object]:
        """What it computes after half of the batches, after all, and when it is asked again."""
        stream, half = self.factory(), len(parts) // 2
        self._feed(stream, x, y, parts[:half])
        yield self._computed(stream, debiased)
        self._feed(stream, x, y, parts[half:])
        yield self._computed(stream, debiased)
        yield self._computed(stream, debiased)

    def _feed(self, stream: Any, x: Tensor, y: Tensor, parts: Sequence[slice]) -> None:
        for rows in parts:
            one, two = x[rows], y[rows]
            stream.update(*((one.numpy(), two.numpy()) if self.numpy else (one, two)))

    def _computed(self, stream: Any, debiased: bool) -> object:
        return stream.compute(**{self.switch: debiased}) if self.switch else stream.compute()


def streaming(name: str, stream: Stream, estimators: tuple[bool, ...], arrays: Arrays = "torch") -> Subject:
    """A class that is fed batches, as a subject."""
    return Subject(name, stream, estimators, arrays, "stream", gradient=False)


def load(place: str, estimator: str, arrays: Arrays, gradient: bool) -> Subject:
    """Imports `package.module:name` from the environment or the current folder.

    Args:
        place: a function (x, y) -> number, or a class with update(x, y) and compute().
        estimator: biased, debiased, both, or auto: both when it has a parameter `debiased` or `unbiased`, else biased.
        arrays: what it takes.
        gradient: whether a function is meant to be differentiated.

    Raises:
        UserError: it cannot be imported, or is neither.
    """
    module_name, _, name = place.partition(":")
    if not name:
        raise UserError(f"--impl {place!r}: write package.module:function, for example mypkg.metrics:linear_cka")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise UserError(f"--impl {place}: cannot import it: {type(error).__name__}: {error}") from error
    if not callable(found):
        raise UserError(
            f"--impl {place} is of type {type(found).__name__}; name a function, or a class with update and compute"
        )
    if found is StreamingCKA:
        found = _Ours  # it takes lists of layers
    is_stream = inspect.isclass(found)
    if is_stream and not (callable(getattr(found, "update", None)) and callable(getattr(found, "compute", None))):
        raise UserError(f"--impl {place}: the class needs update(x, y) and compute()")
    switch = _switch(found.compute if is_stream else found)
    asked = {} if is_stream or not switch else {switch: True}  # which we give whether it has a default or not
    _require_signature(place, found.update if is_stream else found, 3 if is_stream else 2, asked)
    estimators = _estimators(place, switch, estimator)
    if is_stream:
        return streaming(place, Stream(found, switch, arrays == "numpy"), estimators, arrays)
    return Subject(place, _function(found, switch, arrays), estimators, arrays, "function", gradient)


def _require_signature(place: str, function: Callable[..., object], count: int, asked: Mapping[str, bool]) -> None:
    try:
        inspect.signature(function).bind(*range(count), **asked)
    except TypeError as error:
        raise UserError(f"--impl {place}: cannot be called as (x, y): {error}") from None
    except ValueError:  # a builtin without a signature
        return


def _switch(function: Callable[..., object]) -> str:
    """The parameter that chooses the estimator; empty where there is none."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return ""
    return next((name for name in ("debiased", "unbiased") if name in parameters), "")


def _estimators(place: str, switch: str, estimator: str) -> tuple[bool, ...]:
    if estimator == "both" and not switch:
        raise UserError(
            f"--impl {place}: --estimator both needs a parameter named 'debiased' or 'unbiased'; it has none"
        )
    if estimator == "auto":
        return (False, True) if switch else (False,)
    return {"biased": (False,), "debiased": (True,), "both": (False, True)}[estimator]


def _function(function: Callable[..., object], switch: str, arrays: Arrays) -> Call:
    def call(x: Tensor, y: Tensor, debiased: bool) -> object:
        one, two = (x.numpy(), y.numpy()) if arrays == "numpy" else (x, y)
        return function(one, two, **{switch: debiased}) if switch else function(one, two)

    return call
