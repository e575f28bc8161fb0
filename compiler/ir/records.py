"""Frozen dataclasses that are made quickly."""

from __future__ import annotations

from dataclasses import MISSING, fields
from typing import Any, TypeVar

T = TypeVar("T")


def quick(cls: type[T]) -> type[T]:
    """A frozen dataclass with slots, made several times faster; everything else about it stays as it is.

    Python stores the fields of a frozen instance through `object.__setattr__`, one call each. Here it has a class with
    the same slots and without that bar while `__init__` fills it.
    """
    record: Any = cls
    unfrozen = type(cls.__name__, (), {"__slots__": record.__slots__})
    scope: dict[str, Any] = {"cls": cls, "unfrozen": unfrozen, "become": object.__setattr__}
    parameters = []
    for field in fields(record):
        if field.default_factory is not MISSING:
            raise TypeError(f"{cls.__name__}.{field.name} has a default factory; wanted a value")
        parameters.append(field.name if field.default is MISSING else f"{field.name}=default_{field.name}")
        scope[f"default_{field.name}"] = field.default
    lines = [f"def __init__(self, {', '.join(parameters)}):", "become(self, '__class__', unfrozen)"]
    lines += [f"self.{field.name} = {field.name}" for field in fields(record)]
    exec("\n    ".join([*lines, "self.__class__ = cls"]), scope)
    record.__init__ = scope["__init__"]
    return cls
