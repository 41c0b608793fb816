"""What outlives a call: children that have left, processes that refuse to end, threads, timers and signals. Runs in sandboxes only."""

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

LIBC = ctypes.CDLL(None, use_errno=True)
noted = []


def _named(mark):
    LIBC.prctl(15, mark.encode(), 0, 0, 0)  # PR_SET_NAME: how the test finds this process


def _forever(mark, busy=False):
    _named(mark)
    for number in range(1, 65):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            try:
                signal.signal(number, signal.SIG_IGN)
            except (OSError, ValueError):
                continue
    while True:
        if not busy:
            time.sleep(3600)


def grandchildren(event):
    """Processes that have left the session and lost their parents, ignore all signals, spin, sleep, or have stopped themselves."""
    for number in range(event["count"]):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                if number % 3 == 2:
                    _named(event["mark"])
                    os.kill(os.getpid(), signal.SIGSTOP)
                _forever(event["mark"], busy=number % 3 == 1)
            os._exit(0)
    for _ in range(event["count"]):
        os.wait()
    return "left some"


def raw_child(event):
    """A child that the interpreter knows nothing of: it keeps the instance's sockets."""
    if LIBC.fork() == 0:
        _forever(event["mark"])
    return "left one"


def program(event):
    code = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\ntime.sleep(3600)"
    subprocess.Popen([sys.executable, "-c", code, event["mark"]], start_new_session=True, close_fds=False)
    return "left a program"


def stop_itself(event):
    os.kill(os.getpid(), signal.SIGSTOP)
    os.killpg(0, signal.SIGSTOP)
    signal.raise_signal(signal.SIGTSTP)
    return "still here"


def ignore(event):
    """Past the deadline, deaf to everything."""
    _forever(event["mark"], busy=event["busy"])


def thread(event):
    """A thread that runs on into the next calls, writes to what it shares with them, and prints."""

    def run():
        for number in itertools.count():
            noted.append(number)
            print(f"thread of {event['word']}")
            time.sleep(0.001)

    threading.Thread(target=run, daemon=True).start()
    return event["word"]


def word(event):
    time.sleep(event.get("seconds", 0))
    return [event["word"], len(noted)]


class Late(Exception):
    pass


def _raise(*_):
    raise Late("a signal after its call")


WAYS = {
    "itimer": lambda: signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002),
    "virtual itimer": lambda: signal.setitimer(signal.ITIMER_VIRTUAL, 0.0005, 0.0005),
    "alarm": lambda: signal.alarm(1),
    "timer thread": lambda: threading.Timer(0.01, lambda: os.kill(os.getpid(), signal.SIGUSR1)).start(),
    "child": lambda: os.fork() or ([(time.sleep(0.002), os.kill(1, signal.SIGUSR1)) for _ in range(100)] and os._exit(0)),
    "interrupts": lambda: threading.Thread(target=_interrupt, daemon=True).start(),
}


def _interrupt():
    import _thread

    for _ in range(50):
        time.sleep(0.002)
        _thread.interrupt_main()


def timers(event):
    """Signals that will come when this call is over; their handler raises, or counts, or is not there."""
    for number in (signal.SIGALRM, signal.SIGVTALRM, signal.SIGUSR1):
        signal.signal(number, {"raise": _raise, "count": lambda *_: noted.append(1), "default": signal.SIG_DFL}[event["then"]])
    WAYS[event["way"]]()
    return "armed"


def go(event):
    os._exit(3)
