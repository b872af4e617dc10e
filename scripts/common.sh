# Sourced by the other scripts: one virtual environment, .venv in the working tree, with the extras that each of them
# needs.
# Needs bash, Python 3.11 or newer (64 bit) and a package index. HOME and PATH may be unset.

ROOT=$(cd -P -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
VENV=$ROOT/.venv
CACHE=$ROOT/.cache
STAMP=$VENV/.splitedge-installed
PATH=${PATH:-/usr/local/bin:/usr/bin:/bin}
export PATH PYTHONUTF8=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
unset PYTHONHOME PYTHONPATH PIP_USER PIP_TARGET PIP_PREFIX
unset PYTHONDONTWRITEBYTECODE # containers set it; then each of hundreds of processes compiles all sources again

die() {
  printf '%s: %s\n' "${0##*/}" "$*" >&2
  exit 1
}

# setup EXTRA...: make .venv if it is missing or broken, and install the project with these extras if they are missing.
setup() {
  mkdir -p "$CACHE" || die "cannot write to $ROOT; make the working tree writable and run again"
  exec 9>"$CACHE/setup.lock"
  if command -v flock >/dev/null; then flock 9; fi # a second script waits
  make_venv
  local key have="" extra missing=""
  key=$(fingerprint)
  if [ -r "$STAMP" ] && [ "$(sed -n 1p "$STAMP")" = "$key" ]; then have=$(sed -n 2p "$STAMP"); fi
  case " $have " in *" test-all "*) have="$have test demo" ;; esac # it includes them (pyproject.toml)
  for extra in "$@"; do
    case " $have " in *" $extra "*) ;; *) missing=1 && have="$have $extra" ;; esac
  done
  if [ -n "$missing" ]; then
    install "$have"
    printf '%s\n%s\n' "$key" "${have# }" >"$STAMP"
  fi
  exec 9>&-
}

pip() {
  "$VENV/bin/python" -m pip "$@"
}

make_venv() {
  local python
  if "$VENV/bin/python" -m pip --version >/dev/null 2>&1; then return; fi
  python=$(find_python) || exit 1
  printf 'Making a virtual environment in .venv with %s\n' "$python" >&2
  "$python" -m venv --clear "$VENV" || die "could not make a virtual environment in $VENV; see the message above and run again"
}

# find_python: the first suitable Python. The system's default comes first, because it is most likely complete.
find_python() {
  local name verdict old="" narrow="" bare=""
  for name in ${SPLITEDGE_PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    verdict=$("$name" -c "$PROBE" 2>/dev/null) || continue
    case $verdict in
      good) command -v "$name" && return ;;
      old*) old=${old:-$verdict} ;;
      narrow) narrow=$name ;;
      bare) bare=$name ;;
    esac
  done
  if [ -n "$bare" ]; then die "$bare cannot make virtual environments; install them (Debian, Ubuntu, Raspberry Pi OS: sudo apt install python3-venv) and run again"; fi
  if [ -n "$narrow" ]; then die "splitedge needs a 64-bit system and $narrow is a 32-bit Python; install a 64-bit one and run again"; fi
  if [ -n "$old" ]; then die "splitedge needs Python 3.11 or newer and this is ${old#old }; install a newer one, or name it in SPLITEDGE_PYTHON, and run again"; fi
  die "splitedge needs Python 3.11 or newer and none was found; install it, or name it in SPLITEDGE_PYTHON, and run again"
}

PROBE='
import sys
if sys.version_info < (3, 11):
    print("old " + sys.version.split()[0])
elif sys.maxsize < 2**32:
    print("narrow")
else:
    try:
        import ensurepip, venv
    except ImportError:
        print("bare")
    else:
        print("good")
'

# fingerprint: a hash of an installation's inputs other than extras: required versions, interpreter, working tree path.
fingerprint() {
  "$VENV/bin/python" - "$ROOT" <<'PYTHON'
import hashlib, pathlib, sys
root = pathlib.Path(sys.argv[1])
parts = [sys.version.encode(), bytes(root), *((root / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))]
print(hashlib.sha256(b"\0".join(parts)).hexdigest())
PYTHON
}

install() {
  local extras log=$CACHE/install.log
  extras=$(tr ' ' , <<<"${1# }")
  printf 'Installing splitedge[%s] into .venv, once\n' "$extras" >&2
  # Without --no-compile pip compiles every module, which takes longer than copying; Python compiles modules on import.
  if ! (cd "$ROOT" && pip install --no-compile --constraint constraints.txt --editable ".[$extras]") >"$log" 2>&1 9>&-; then
    tail -n 15 "$log" >&2
    die "the installation failed; see $log, fix the cause and run again"
  fi
}
