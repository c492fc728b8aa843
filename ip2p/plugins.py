"""Finds plug-ins by walking a package: each of its modules is one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterable
from types import ModuleType
from typing import TypeVar

T = TypeVar("T")


def modules_in(package: str, path: Iterable[str], beside: Collection[str] = ()) -> list[ModuleType]:
    """Imports the modules of a package but those in `beside`, in the order of their names."""
    names = [module.name for module in pkgutil.iter_modules(path) if module.name not in beside]
    return [importlib.import_module(f"{package}.{name}") for name in sorted(names)]


def classes_in(package: str, path: Iterable[str], kind: type[T]) -> list[type[T]]:
    """Returns the subclasses of a kind that the modules of a package define."""
    return [
        value
        for module in modules_in(package, path)
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, kind) and value.__module__ == module.__name__
    ]
