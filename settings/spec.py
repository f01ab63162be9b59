"""`NAME[:key=value,...]`: the one string form of whatever is pluggable.

`sgd:lr=0.02`, `shakespeare:pad=true`, `my_module:TASK` and `my_module:make_task:width=64` are specs.
"""

import importlib
import inspect
import math
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from settings.errors import InputError, place_of, unknown

_BOOL = inspect.Parameter("value", inspect.Parameter.KEYWORD_ONLY, annotation=bool)


@dataclass(frozen=True)
class Spec:
    """A parsed spec: `name`, which may be `module:attribute`, and its options as text."""

    name: str
    options: dict[str, str]


def parse_spec(text: str) -> Spec:
    """Split `NAME[:key=value,...]`.

    Raises:
        InputError: An option without `=`, an empty name, or an option given twice.
    """
    name, *rest = re.split(r":(?=[^:=,]*=)", text.strip(), maxsplit=1)
    pairs = rest[0].split(",") if rest else []
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        key = key.strip()
        if key in options:
            raise InputError(f"{text!r} gives {key} twice")
        if not equals or not key:
            raise InputError(f"cannot read {pair!r} in {text!r}: write NAME:key=value,key=value")
        options[key] = value.strip()
    if not name:
        raise InputError(f"cannot read {text!r}: the name is missing")
    return Spec(name, options)


def split_option(text: str, key: str) -> tuple[str, bool]:
    """Take a true-or-false option out of a spec: the rest of it, and the option's value."""
    spec = parse_spec(text)
    if key not in spec.options:
        return text, False
    value = _read(spec.options.pop(key), _BOOL, f"{spec.name}:{key}")
    options = ",".join(f"{name}={option}" for name, option in spec.options.items())
    return f"{spec.name}:{options}" if options else spec.name, bool(value)


def construct(
    text: str,
    factories: Mapping[str, Callable[..., Any]],
    kind: str,
    *positional: Any,
    others: tuple[str, ...] = (),
) -> Any:
    """Call the factory that a spec names with `positional` and the spec's options.

    Args:
        text: The spec. A name `module:attribute` is imported; what it names is a factory too, or
            (where nothing positional is given) the finished object.
        factories: Name -> callable whose further parameters are the options; annotations int, float,
            bool and str decide how a value is read.
        kind: What is chosen, for error messages: "task", "server optimizer".
        positional: First arguments of the factory.
        others: What the caller takes besides, for the error that names the choices.

    Raises:
        InputError: Unknown name or option, a value that cannot be read, a required option left out.
    """
    spec = parse_spec(text)
    if spec.name in factories:
        factory = factories[spec.name]
    elif spec.name.partition(":")[0] in factories:
        raise InputError(f"cannot read {text!r}: write NAME:key=value,key=value")
    elif ":" in spec.name:
        factory = _import(spec.name, kind)
        if not callable(factory):
            if spec.options:
                raise InputError(f"{spec.name} takes no options, but {text!r} gives some")
            return factory
    else:
        raise unknown(kind, spec.name, [*factories, *others, "module:attribute"])
    return _call(factory, spec, kind, positional)


def _call(factory: Callable[..., Any], spec: Spec, kind: str, positional: tuple[Any, ...]) -> Any:
    """Call `factory` with `spec.options` read as its parameters' annotations say."""
    everything = [*inspect.signature(factory, eval_str=True).parameters.items()]
    parameters = dict(everything[len(positional) :])
    keywords = {}
    for key, value in spec.options.items():
        if key not in parameters:
            raise unknown(f"option of {kind} {spec.name}", key, [*parameters])
        keywords[key] = _read(value, parameters[key], f"{spec.name}:{key}")
    missing = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and name not in keywords
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if missing:
        raise InputError(
            f"{kind} {spec.name} needs {', '.join(missing)}: {spec.name}:{missing[0]}=..."
        )
    try:
        return factory(*positional, **keywords)
    except InputError:
        raise
    except (ValueError, TypeError, IndexError) as error:
        raise InputError(f"{kind} {spec.name}: {error}") from error


def _read(text: str, parameter: inspect.Parameter, where: str) -> Any:
    """Read an option's text as its parameter's annotation (or, lacking one, its default) says."""
    wanted = parameter.annotation
    if get_args(wanted)[1:] == (NoneType,):
        wanted = get_args(wanted)[0]
    if wanted not in (int, float, bool, str):
        wanted = type(parameter.default) if parameter.default is not None else str
    if wanted is bool:
        if text.lower() in ("true", "yes", "1"):
            return True
        if text.lower() in ("false", "no", "0"):
            return False
        raise InputError(f"{where} must be true or false, not {text!r}")
    if wanted is tuple:
        wanted = _floats
    try:
        value = wanted(text)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError("neither NaN nor infinity is a number that any option takes")
        return value
    except (TypeError, ValueError):
        raise InputError(f"{where} must be {_article(wanted)}, not {text!r}") from None


def _floats(text: str) -> tuple[float, ...]:
    """`0.9/0.99`: how a tuple, such as a torch optimizer's betas, is written inside a spec."""
    return tuple(float(part) for part in text.split("/"))


def _article(wanted: Any) -> str:
    return {int: "a whole number", float: "a number", str: "text"}.get(
        wanted, "numbers as 0.9/0.99"
    )


def _unimportable(module_name: str, error: Exception) -> InputError:
    """What is wrong with a user's module, and where."""
    # A syntax error tells its own place.
    where = "" if isinstance(error, SyntaxError) else f" ({place_of(error)})"
    return InputError(f"cannot import {module_name}: {type(error).__name__}: {error}{where}")


def _is_own(name: str, value: object, module_name: str) -> bool:
    """Whether a module's public name is its own, and not one that it has imported."""
    imported = callable(value) and getattr(value, "__module__", None) != module_name
    return not (name.startswith("_") or inspect.ismodule(value) or imported)


def _import(name: str, kind: str) -> Any:
    """The object that `module:attribute` names; the current folder is searched too."""
    module_name, _, attribute = name.partition(":")
    if module_name.endswith(".py"):
        said = f"{module_name.removesuffix('.py')}:{attribute}"
        raise InputError(f"unknown {kind} {name!r}: write {said}, a module's name has no .py")
    if not all(module_name.split(".")):
        raise InputError(f"unknown {kind} {name!r}: {module_name!r} is not a module's name")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name + ".").startswith(error.name + "."):
            raise InputError(
                f"unknown {kind} {name!r}: there is no module {module_name} in {Path.cwd()} or installed"
            ) from None
        raise _unimportable(module_name, error) from error
    except InputError:
        raise
    except Exception as error:
        raise _unimportable(module_name, error) from error
    if not hasattr(module, attribute):
        own = [key for key, value in vars(module).items() if _is_own(key, value, module_name)]
        raise unknown(f"attribute of {module_name}", attribute, own)
    return getattr(module, attribute)
