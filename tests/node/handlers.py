"""Handlers that tests deploy into sandboxes: source texts. They report what they see; the tests judge."""

LOOK = """
import ctypes, json, os, socket, sys

def attempt(action):
    try:
        return action()
    except BaseException as error:
        return f"{type(error).__name__} {getattr(error, 'errno', '')}"

def status():
    lines = open("/proc/self/status").read().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}

def readable(path):
    return attempt(lambda: os.listdir(path) if os.path.isdir(path) else open(path, "rb").read(64).decode("latin1"))

def writable(path):
    return attempt(lambda: (open(path + "/probe", "w").write("x"), True)[1])

def call(name, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    return "allowed" if getattr(libc, name)(*arguments) >= 0 else ctypes.get_errno()

def raw(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    return "allowed" if libc.syscall(number, *arguments) >= 0 else ctypes.get_errno()

def family(number, kind=socket.SOCK_STREAM):
    return attempt(lambda: socket.socket(number, kind).close())

def handler(event, context):
    return attempt(lambda: eval(event, globals()))
"""

ECHO = "def handler(event, context):\n    return event\n"

LIBRARIES = """
import asyncio, hashlib, multiprocessing, ssl, subprocess, sys, threading, tempfile, concurrent.futures

def square(n):
    return n * n

async def later():
    await asyncio.sleep(0)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", "print(7)", stdout=asyncio.subprocess.PIPE)
    return int((await process.communicate())[0])

def handler(event, context):
    found = {}
    found["subprocess"] = subprocess.run([sys.executable, "-c", "print(6*7)"], capture_output=True, text=True).stdout.strip()
    with multiprocessing.Pool(2) as pool:
        found["pool"] = pool.map(square, [1, 2, 3])
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        found["threads"] = list(threads.map(square, [4, 5]))
    found["asyncio"] = asyncio.run(later())
    found["ssl"] = len(ssl.create_default_context().get_ca_certs()) > 0 or bool(ssl.get_default_verify_paths().capath)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * 1000)
    queue = multiprocessing.Queue()
    process = multiprocessing.Process(target=queue.put, args=("hello",))
    process.start()
    found["queue"] = queue.get(timeout=10)
    process.join()
    return found
"""
