# Sourced by the scripts beside it. `prepare EXTRAS` makes .venv in the repository's root and installs the package with
# these extras, at the versions of requirements.lock; where that was done before, it does nothing.
#
#   PYTHON  interpreter to make .venv with (default: the newest of python3.13, 3.12, 3.11 that works)
#   VENV    another place than .venv

VENV=${VENV:-.venv}

_fits() { "$1" -c 'import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }

_find_python() {
  local name
  for name in ${PYTHON:-python3.13 python3.12 python3.11 python3}; do
    if _fits "$name"; then
      echo "$name"
      return
    fi
  done
  echo "error: ${PYTHON:-python3}: expected Python 3.11, 3.12 or 3.13 with its venv module." \
    "Install one (Debian: apt-get install python3 python3-venv) or name it: PYTHON=/path/to/python $0" >&2
  return 1
}

_same_version() {
  local print='import sys; print(sys.version_info[:2])'
  [[ "$("$1" -c "$print")" == "$("$2" -c "$print")" ]]
}

prepare() {
  local extras=$1 python log=$VENV/install.log stamp
  stamp=$VENV/.installed-${extras//,/-}
  if ! _fits "$VENV/bin/python" || { [[ -n ${PYTHON:-} ]] && ! _same_version "$PYTHON" "$VENV/bin/python"; }; then
    python=$(_find_python) || return 1
    echo "making $VENV with $("$python" --version)" >&2
    "$python" -m venv --clear "$VENV" || return 1
  fi
  if [[ "$(cat "$stamp" 2>/dev/null)" == "$(cat pyproject.toml requirements.lock | cksum)" ]]; then
    return
  fi
  echo "installing molmoact2-jax[$extras] into $VENV (log: $log)" >&2
  if ! "$VENV/bin/python" -m pip install -c requirements.lock -e ".[$extras]" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "error: the installation failed; its log is $log" >&2
    return 1
  fi
  cat pyproject.toml requirements.lock | cksum >"$stamp"
}
