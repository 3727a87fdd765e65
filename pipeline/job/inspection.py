"""Lets Beam remember what it would find out again for every step of a graph.

While Beam builds a graph, and again in every worker, it reads the signatures of all methods of each
step dozens of times, looks through them for state and timers, and parses the command line anew
whenever it looks at an option. That is most of the processor time of a graph whose steps have
little to do. None of it ever changes.
"""

import functools
import types
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms import core, userstate

Arguments = tuple[list[str], list[Any]]
"""Names of a function's arguments, and the values of those that have one."""

Specs = tuple[set[Any], set[Any]]
"""The state and the timers that a step declares."""


def remember_inspections() -> None:
    """Makes Beam remember what it found out of steps and options, in this process, from now on."""
    if not hasattr(core.get_function_args_defaults, "forgetful"):
        core.get_function_args_defaults = _remembered_arguments(core.get_function_args_defaults)
        userstate.get_dofn_specs = _remembered_specs(userstate.get_dofn_specs)
        PipelineOptions.view_as = _remembered_view(PipelineOptions.view_as)


def _remembered_arguments(read: Callable[[Any], Arguments]) -> Callable[[Any], Arguments]:
    """Returns a function that gives the arguments of any other, and reads each method once."""
    read_once = functools.lru_cache(maxsize=4096)(read)

    def arguments(function: Any) -> Arguments:
        method = getattr(function, "__func__", None)
        if not isinstance(method, types.FunctionType) or hasattr(method, "__wrapped__"):
            return read(function)
        names, values = read_once(method)
        # What the method is bound to is not among its arguments, nor is a value for it.
        return names[1:], values[-(len(names) - 1) :] if len(names) > 1 else []

    arguments.forgetful = read  # type: ignore[attr-defined]
    return arguments


def _remembered_specs(read: Callable[[Any], Specs]) -> Callable[[Any], Specs]:
    """Returns a function that gives the state and timers of a step, and reads each class once.

    A step that holds methods of its own, or something in place of its class's, is read each time.
    """
    known: WeakKeyDictionary[type, Specs] = WeakKeyDictionary()

    def specs(step: Any) -> Specs:
        if any(
            isinstance(value, types.MethodType) or hasattr(type(step), name)
            for name, value in vars(step).items()
        ):
            return read(step)
        found = known.get(type(step))
        if found is None:
            found = known[type(step)] = read(step)
        state, timers = found
        return set(state), set(timers)

    specs.forgetful = read  # type: ignore[attr-defined]
    return specs


def _remembered_view(view_as: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function that makes each view of a job's options once.

    All views of one set of options share their values, so that one view of a kind is as good as
    another.
    """

    def view(options: Any, kind: type) -> Any:
        views = options.__dict__.setdefault("_views", {})
        if kind not in views:
            views[kind] = view_as(options, kind)
            views[kind].__dict__["_views"] = views
        return views[kind]

    return view
