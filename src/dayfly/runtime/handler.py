"""From the handler string to a callable: imports the user's module, with Lambda's names for what can go wrong.

The string is `module.function`, `package.module.function` or `package/module.function`; without a dot it names the module, and the
function is `handler`. `module:application` names a web application (ASGI or WSGI). Must never hide a user's traceback. Used by agent.py.
"""

import _imp
import os
import sys
from types import ModuleType

from dayfly.runtime.failure import Fault, message_of, stack_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ModuleSpec = sys.modules["_frozen_importlib"].ModuleSpec  # importlib's, without importlib
SourceFileLoader = sys.modules["_frozen_importlib_external"].SourceFileLoader
BEFORE_SOURCE = ("", *_imp.extension_suffixes())

CACHE_ENDING = f".{sys.implementation.cache_tag}.pyc"

DEFAULT_FUNCTION = "handler"
CO_COROUTINE, CO_ASYNC_GENERATOR = 0x80, 0x200  # inspect's, without inspect
UNWRAP_MAX = 16  # functools.partial around functools.partial …


def split(handler: str) -> tuple[str, str]:
    """(module, function). Raises Fault Runtime.MalformedHandlerName."""
    module, dot, function = handler.rpartition(":" if ":" in handler else ".")
    if not dot:
        module, function = handler, DEFAULT_FUNCTION
    module = module.replace("/", ".")
    if not function.isidentifier() or not all(part.isidentifier() for part in module.split(".")):
        raise Fault("Runtime.MalformedHandlerName", f"Bad handler '{handler}': it must be module.function")
    return module, function


def load(handler: str, task_root: str) -> "Callable[..., Any]":
    """Import the module and return its handler. Raises Fault as Lambda names it, or whatever the module raised."""
    module_name, function_name = split(handler)
    check_not_builtin(module_name, task_root)
    try:
        module = run_file(module_name, task_root) if is_plain_file(module_name, task_root) else import_module(module_name)
    except ImportError as error:
        raise Fault("Runtime.ImportModuleError", f"Unable to import module '{module_name}': {message_of(error)}", stack_of(error)) from None
    except SyntaxError as error:
        where = [f'  File "{error.filename}" Line {error.lineno}\n    {(error.text or "").rstrip()}\n']
        raise Fault("Runtime.UserCodeSyntaxError", f"Syntax error in module '{module_name}': {message_of(error)}", where) from None
    found = getattr(module, function_name, None)
    if found is None:
        raise Fault("Runtime.HandlerNotFound", f"Handler '{function_name}' missing on module '{module_name}'")
    if not callable(found):
        raise Fault("Runtime.HandlerNotFound", f"Handler '{function_name}' of module '{module_name}' is not callable")
    return found  # type: ignore[no-any-return]


def check_not_builtin(module_name: str, task_root: str) -> None:
    """A user's json.py cannot be found behind the json that is loaded already: say so instead of "handler missing"."""
    top = module_name.partition(".")[0]
    shadowed = top in sys.modules and (os.access(f"{task_root}/{top}.py", os.F_OK) or os.access(f"{task_root}/{top}", os.F_OK))
    if shadowed or top in sys.builtin_module_names:
        raise Fault("Runtime.BuiltInModuleConflict", f"Cannot use built-in module {top} as a handler module")


def import_module(name: str) -> ModuleType:
    """`name` by Python's own import system."""
    __import__(name)
    return sys.modules[name]


def is_plain_file(name: str, folder: str) -> bool:
    """Whether Python's import system, with `folder` first on its path, would do no more than `run_file`: a top-level module that is
    one source file, with nothing beside it that comes first (a package, an extension module) or that stands for it (bytecode)."""
    if "." in name or _imp.is_frozen(name) or not os.access(f"{folder}/{name}.py", os.R_OK) or os.access(f"{folder}/__pycache__", os.F_OK):
        return False
    return not any(os.access(f"{folder}/{name}{ending}", os.F_OK) for ending in BEFORE_SOURCE)


def run_file(name: str, folder: str) -> ModuleType:
    """What importing a plain file comes to, without the import system: that is Python code of which each instance would copy 60 pages
    to find one file, and it takes as long as all walls together. The module is the same."""
    return run_source(name, folder, read_source(f"{folder}/{name}.py"))


def read_source(path: str) -> bytes:
    """A file's bytes."""
    with open(path, "rb", buffering=0) as file:
        return file.read()


def run_source(name: str, folder: str, source: bytes) -> ModuleType:
    """A new module in sys.modules, executed. Raises what its code raises; then it is not there."""
    path = f"{folder}/{name}.py"
    spec = ModuleSpec(name, SourceFileLoader(name, path), origin=path)
    spec.has_location = True
    spec.cached = f"{folder}/__pycache__/{name}{CACHE_ENDING}"  # importlib would find the same out with 20 pages of its own
    module = ModuleType(name)
    module.__spec__ = spec
    module.__loader__ = spec.loader
    module.__package__ = ""
    module.__file__ = path
    vars(module)["__cached__"] = spec.cached
    spec._initializing = True  # a module that imports it back is told so when a name is missing
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))  # noqa: S102 - the user's code, in the user's sandbox
        return sys.modules[name]  # a module may put another object in its place
    except BaseException:
        sys.modules.pop(name, None)
        raise
    finally:
        spec._initializing = False


def is_async(handler: "Any") -> bool:
    """Whether calling it gives a coroutine or an async generator: `async def`, a partial of one, an object whose __call__ is one.

    A plain function that returns a coroutine all the same (a decorator's wrapper) is found out per call, in sequential.py.
    """
    for _ in range(UNWRAP_MAX):
        inner = getattr(handler, "func", None)
        if type(handler).__name__ != "partial" or inner is None:
            break
        handler = inner
    code = getattr(handler, "__code__", None) or getattr(getattr(handler, "__func__", None), "__code__", None)
    if code is None:
        call = next((vars(kind)["__call__"] for kind in type(handler).__mro__ if "__call__" in vars(kind)), None)
        code = getattr(call, "__code__", None)
    return bool(getattr(code, "co_flags", 0) & (CO_COROUTINE | CO_ASYNC_GENERATOR))
