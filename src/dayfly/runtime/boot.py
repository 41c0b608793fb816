"""From the gateway's BOOT frame to a process that looks like a Lambda runtime: environment, import path, a clean interpreter.

BOOT's body is a JSON object: {"namespace", "function", "version": int, "instance", "handler", "memory_mb", "timeout_seconds",
"concurrency", "env": {name: value}, "secrets": [names]}; for a template of packages also "imports": [names of modules]. Must run
before any user code and imports none. Used by agent.py.
"""

import _signal  # type: ignore[import-not-found]
import atexit
import faulthandler
import gc
import os
import sys
import time
import types
from contextlib import suppress

from dayfly.runtime.frames import SLOTS_MAX
from dayfly.runtime.jsontext import loads
from dayfly.runtime.template import HOOKS_NAME, ONE_THREAD, hooks_module

RESERVED = frozenset(("_HANDLER", "_X_AMZN_TRACE_ID", "LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR", "AWS_EXECUTION_ENV"))
RESERVED_PREFIXES = ("AWS_LAMBDA_", "DAYFLY_")
FREE = frozenset(("AWS_LAMBDA_LOG_FORMAT", "AWS_LAMBDA_LOG_LEVEL"))  # reserved prefix, but the user's to set
SIGNALS = (int(_signal.SIGINT), int(_signal.SIGTERM), int(_signal.SIGCHLD))  # not `signal`: its enums are slow
STDLIB = (os.path.dirname(os.__file__), f"{os.path.dirname(os.__file__)}/lib-dynload")
PATH = "/usr/local/bin:/usr/bin:/bin:/opt/bin"


class Boot:
    """What this instance is, as the BOOT frame says it. Raises ValueError, KeyError or TypeError for anything else."""

    def __init__(self, text: bytes) -> None:
        given = loads(text)
        self.namespace = str(given["namespace"])
        self.function = str(given["function"])
        self.version = int(given["version"])
        self.instance = str(given["instance"])
        self.handler = str(given["handler"])
        self.is_application = ":" in self.handler
        self.memory_mb = int(given["memory_mb"])
        self.timeout_seconds = float(given["timeout_seconds"])
        self.concurrency = max(1, min(int(given.get("concurrency", 1)), SLOTS_MAX))
        self.env = {str(name): str(value) for name, value in given["env"].items()} if given.get("env") else {}
        self.secrets = tuple(map(str, given.get("secrets", ())))
        self.imports = tuple(map(str, given["imports"])) if "imports" in given else None
        self.log_group = f"/aws/lambda/{self.function}"
        self.log_stream = time.strftime("%Y/%m/%d", time.gmtime()) + f"/[{self.version}]{self.instance}"


def is_reserved(name: str) -> bool:
    """Whether this variable is the platform's to set, whatever the user's configuration says."""
    return name in RESERVED or (name.startswith(RESERVED_PREFIXES) and name not in FREE)


# The same for every instance; a zygote sets them once. Whoever builds the walls may set others (a proxy, a private TMPDIR).
SHARED = {
    "HOME": "/tmp",  # noqa: S108 - the sandbox's own /tmp
    "TMPDIR": "/tmp",  # noqa: S108
    "PATH": PATH,
    "LANG": "C.UTF-8",
    "LC_CTYPE": "C.UTF-8",
    "TZ": ":UTC",
    "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
    "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
    "AWS_EXECUTION_ENV": f"AWS_Lambda_python{sys.version_info[0]}.{sys.version_info[1]}",
}


def environment(boot: Boot, task_root: str, layer_root: str) -> dict[str, str]:
    """The variables that are this function's: where it lies, then the user's, then the reserved ones. What the walls need (a proxy;
    TMPDIR where /tmp is not private) is in os.environ already, as is SHARED: the zygote's environment was built from nothing."""
    variables = common_environment(boot, task_root, layer_root)
    variables["AWS_LAMBDA_FUNCTION_NAME"] = variables["DAYFLY_FUNCTION"] = boot.function
    variables["AWS_LAMBDA_FUNCTION_VERSION"] = variables["DAYFLY_VERSION"] = str(boot.version)
    variables["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] = str(boot.memory_mb)
    variables["AWS_LAMBDA_LOG_GROUP_NAME"] = boot.log_group
    variables["AWS_LAMBDA_LOG_STREAM_NAME"] = boot.log_stream
    variables["_HANDLER"] = boot.handler
    variables["DAYFLY_INSTANCE"] = boot.instance
    if boot.concurrency > 1:
        variables["AWS_LAMBDA_MAX_CONCURRENCY"] = str(boot.concurrency)
    return variables


def common_environment(boot: Boot, task_root: str, layer_root: str) -> dict[str, str]:
    """Those of them that say nothing of function and version: all that modules find which are imported for several."""
    variables = {"PWD": task_root, "PYTHONPATH": f"{task_root}:{layer_root}"}
    for name, value in boot.env.items():
        if not is_reserved(name):
            variables[name] = value
    variables["LAMBDA_TASK_ROOT"] = task_root
    variables["DAYFLY_NAMESPACE"] = boot.namespace
    return variables


def import_path(boot: Boot, task_root: str, layer_root: str) -> list[str]:
    """sys.path: the function, what PYTHONPATH of its configuration names, its layer, the standard library. Nothing else."""
    extra = filter(None, boot.env.get("PYTHONPATH", "").split(":"))
    layer = [layer_root] if os.access(layer_root, os.F_OK) else []
    return [task_root, *extra, *layer, *STDLIB]


_kept: list[object] = []  # our modules, hidden from user code by `settle`; nothing of them is taken apart


def settle() -> None:
    """What all instances of a zygote have in common, done in the zygote so that no child pays for looking through its whole
    interpreter (each object looked at is a page copied). `enter` does it where no zygote did."""
    for name in [name for name in sys.modules if name == "dayfly" or name.startswith("dayfly.")]:
        _kept.append(sys.modules.pop(name))  # a bundle may bring modules of this name
    _kept.append(sys.modules["__main__"])
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.modules.setdefault(HOOKS_NAME, hooks_module())  # also where nothing will be copied: whoever registers must find it
    for path in [path for path in sys.path_importer_cache if not path.startswith(STDLIB[0])]:
        del sys.path_importer_cache[path]  # looked up before the sandbox's own folders are in place
    for name, value in SHARED.items():
        os.environ.setdefault(name, value)
    time.tzset()
    sys.argv[:] = [""]
    sys.dont_write_bytecode = True
    with suppress(OSError, RuntimeError):  # no descriptor 2: then a crash has no words
        faulthandler.enable(file=2, all_threads=False)  # a segfault prints its Python stack; costs nothing until then


def enter(boot: Boot, task_root: str, layer_root: str) -> None:
    """Make this process the function's: environment, import path, fresh randomness, default signals, no trace of the zygote's."""
    if not _kept:
        settle()
    _be(environment(boot, task_root, layer_root), import_path(boot, task_root, layer_root))
    _clean()


def adopt(variables: dict[str, str], path: list[str]) -> None:
    """Environment and import path."""
    for name in variables:
        os.environ[name] = variables[name]
    if "TZ" in variables:
        time.tzset()
    sys.path[:] = path


def _be(variables: dict[str, str], path: list[str]) -> None:
    adopt(variables, path)
    reseed()
    gc.enable()


def _clean() -> None:
    """Signals and exit hooks that the zygote had for itself."""
    for number in SIGNALS:
        _signal.signal(number, _signal.SIG_DFL)
    atexit._clear()


def enter_template(boot: Boot, task_root: str, layer_root: str) -> None:
    """The same for a version's template, with what only a template has: one thread for numeric libraries."""
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    enter(boot, task_root, layer_root)
    os.environ["AWS_LAMBDA_INITIALIZATION_TYPE"] = "snap-start"


def enter_packages(boot: Boot, task_root: str, layer_root: str) -> None:
    """The same for a template of packages: what is imported now must not find out whose it will be, nor look where code will lie."""
    for name in ONE_THREAD:
        os.environ.setdefault(name, "1")
    _be(common_environment(boot, task_root, layer_root), import_path(boot, task_root, layer_root)[1:])
    _clean()


def enter_from_packages(boot: Boot, task_root: str, layer_root: str) -> None:
    """In its child, now that the code is there: whose it is. Signals and exit hooks are as the packages left them."""
    _be(environment(boot, task_root, layer_root), import_path(boot, task_root, layer_root))


def enter_again(boot: Boot) -> None:
    """In a template's child: what is this instance's own. The rest is as the template's init left it."""
    os.environ["DAYFLY_INSTANCE"] = boot.instance
    os.environ["AWS_LAMBDA_LOG_STREAM_NAME"] = boot.log_stream
    gc.enable()


def reseed() -> None:
    """What all children of one zygote would share. The hash seed cannot be changed; os.urandom was never shared."""
    random = sys.modules.get("random")
    if random is not None:
        random.seed()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None  # type: ignore[attr-defined]
    ssl = sys.modules.get("_ssl")
    if ssl is not None:  # OpenSSL tells forks by their pid, and every instance has pid 1
        ssl.RAND_add(os.urandom(32), 32.0)
