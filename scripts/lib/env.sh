# Sourced by scripts/{test,demo,bench,lock}: a private Python environment for one run, and its end.
#
# Works from an empty Debian 12 or Ubuntu with Python 3.11 or newer. Each run has its own environment in its own temporary
# folder, so any number may run at once, and a run never sees the leavings of another; uv's cache makes that a matter of two
# seconds. Only the installer itself is kept, in .venv-uv, made once under a lock.
#
#   env_begin NAME          finds Python, gets uv, makes $RUN_DIR (removed at exit, also after Ctrl-C); sets $UV and $PYTHON
#   env_make LOCK           makes $RUN_DIR/env from LOCK with this repository installed into it; sets $ENV_PYTHON, $ENV_BIN
#   env_apt PROGRAM=PKG…    installs Debian packages for programs that are missing, when root; otherwise says what is missing
#   env_postgres            installs PostgreSQL the same way, without the cluster that Debian would make and start; tests start their own
#   env_run COMMAND…        runs COMMAND; an interrupt reaches it once, as SIGTERM, and its exit status is returned
#
# With DAYFLY_KEEP_RUN_DIR=1 the folder stays, for looking into it.

REPOSITORY=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
RUN_DIR=""
ENV_CHILD=""

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

env_begin() {
    trap env_end EXIT
    trap 'env_interrupted 130' INT
    trap 'env_interrupted 143' TERM HUP
    # 0755: when root runs us, the platform's unprivileged processes must be able to read what is installed here.
    RUN_DIR=$(mktemp -d "${TMPDIR:-/tmp}/dayfly-$1-XXXXXX")
    chmod 0755 "$RUN_DIR"
    env_find_python
    env_get_uv
}

env_end() {
    local status=$?
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$RUN_DIR" ] && [ -z "${DAYFLY_KEEP_RUN_DIR:-}" ]; then rm -rf "$RUN_DIR"; fi
    exit "$status"
}

env_interrupted() {
    if [ -n "$ENV_CHILD" ]; then
        kill -TERM "$ENV_CHILD" 2>/dev/null || true
        wait "$ENV_CHILD" 2>/dev/null || true
    fi
    exit "$1"
}

env_run() {
    # In the background, because bash runs a trap only between foreground commands. Such a child ignores SIGINT, so that
    # Ctrl-C reaches it exactly once: as the SIGTERM we send.
    "$@" <&0 &
    ENV_CHILD=$!
    local status=0
    wait "$ENV_CHILD" || status=$?
    ENV_CHILD=""
    return "$status"
}

# The newest is not the best: the first that other users may run too, in the order of what distributions ship.
env_find_python() {
    local name path fallback=""
    for name in ${PYTHON:-} python3 python3.11 python3.12 python3.13 /usr/bin/python3 /usr/bin/python3.11 /usr/bin/python3.12 /usr/bin/python3.13; do
        path=$(command -v "$name" || true)
        [ -n "$path" ] || continue
        "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue
        path=$("$path" -c 'import os, sys; print(os.path.realpath(sys.executable))')
        if [ -n "${PYTHON:-}" ] || env_others_may_run "$path"; then
            PYTHON=$path
            return
        fi
        fallback=${fallback:-$path}
    done
    [ -n "$fallback" ] || die "Python 3.11 or newer is needed (apt-get install python3), or name one: PYTHON=/path/to/python3 $0"
    say "note: $fallback lies where only root may read; parts that run as an ordinary user may fail"
    PYTHON=$fallback
}

env_others_may_run() {
    [ "$(id -u)" = 0 ] || return 0
    "$1" -c 'import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534); os.execv(sys.argv[1], [sys.argv[1], "-c", ""])' "$1" 2>/dev/null
}

env_get_uv() {
    local home=$REPOSITORY/.venv-uv version
    version=$(sed -n 's/^uv==\([0-9.]*\).*/\1/p' "$REPOSITORY/requirements.lock" 2>/dev/null || true)
    # uv does not read pip's settings; a mirror that pip is told of must not be lost.
    if [ -n "${PIP_INDEX_URL:-}" ]; then export UV_DEFAULT_INDEX=${UV_DEFAULT_INDEX:-$PIP_INDEX_URL}; fi
    mkdir -p "$home" 2>/dev/null && [ -w "$home" ] || home=$RUN_DIR/uv # a clone that is not ours to write
    mkdir -p "$home"
    UV=$home/env/bin/uv
    (
        flock 9
        [ "$("$UV" --version 2>/dev/null | cut -d' ' -f2)" != "${version:-none}" ] || exit 0
        "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || env_apt_install python3-venv
        rm -rf "$home/env"
        "$PYTHON" -m venv "$home/env" || die "cannot make a virtual environment: apt-get install python3-venv"
        "$home/env/bin/python" -m pip install --quiet --disable-pip-version-check "uv${version:+==$version}" 2>"$RUN_DIR/pip.log" ||
            { cat "$RUN_DIR/pip.log" >&2; die "cannot install uv with pip: is there a network, or a mirror in PIP_INDEX_URL?"; }
    ) 9>"$home/lock"
}

env_make() {
    local lock=$1
    ENV_PYTHON=$RUN_DIR/env/bin/python
    ENV_BIN=$RUN_DIR/env/bin
    "$UV" venv --quiet --no-project --python "$PYTHON" "$RUN_DIR/env"
    "$UV" pip install --quiet --python "$ENV_PYTHON" --requirement "$lock"
    # Installed, not linked: the platform must not need to read a clone that may lie in somebody's private home.
    "$UV" pip install --quiet --python "$ENV_PYTHON" --no-deps "$REPOSITORY"
}

env_apt() {
    local pair missing=()
    for pair in "$@"; do
        command -v "${pair%%=*}" >/dev/null || PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%=*}" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] || env_apt_install "${missing[@]}"
}

env_postgres() {
    ! compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null && ! command -v initdb >/dev/null || return 0
    local told=/etc/postgresql-common/createcluster.d/dayfly-tests.conf
    if [ "$(id -u)" = 0 ]; then
        mkdir -p "${told%/*}"
        echo "create_main_cluster = false" >"$told"
    fi
    env_apt_install postgresql
    if [ "$(id -u)" = 0 ]; then rm -f "$told"; fi
}

env_apt_install() {
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        say "note: not installed, and only root may: $* (what needs it is skipped or done another way)"
        return 0
    fi
    local options=(-qq -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0)
    DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" --yes --no-install-recommends "$@" >"$RUN_DIR/apt.log" 2>&1 ||
        { apt-get update "${options[@]}" && DEBIAN_FRONTEND=noninteractive apt-get install "${options[@]}" --yes --no-install-recommends "$@"; } \
            >>"$RUN_DIR/apt.log" 2>&1 || { tail -n 3 "$RUN_DIR/apt.log" >&2; say "note: could not install $* (what needs it is skipped or done another way)"; }
}
