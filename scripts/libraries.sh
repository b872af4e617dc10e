# Sourced by scripts that need compiled kernels, after common.sh: the libraries of one kind of processor. Any machine
# compiles those of both kinds.

# libraries MACHINE: compile the kernels for all instruction sets of x86_64 or aarch64 into $CACHE/libraries/MACHINE,
# unless these are there and neither their sources nor the compiler may have changed.
libraries() {
  local machine=$1 folder=$CACHE/libraries/$1 key linker=ld
  if [ "$machine" != "$(uname -m)" ]; then linker=$machine-linux-gnu-ld; fi
  mkdir -p "$CACHE/libraries"
  exec 7>"$folder.lock"
  if command -v flock >/dev/null; then flock 7; fi # a second script waits
  key=$(cd "$ROOT" && { grep -E '^(llvmlite|numba|numpy)==' constraints.txt; find kernels -name "*.py" -print0 | sort -z | xargs -0 cat; } | sha256sum)
  if [ "$(cat "$folder.key" 2>/dev/null)" != "$key" ]; then
    command -v "$linker" >/dev/null ||
      die "compiled kernels for $machine need $linker; install it (Debian, Ubuntu: sudo apt install $(binutils "$machine")) and run again"
    printf 'Compiling the kernels for %s (some minutes)\n' "$machine" >&2
    rm -rf -- "$folder" "$folder.key"
    (cd "$ROOT" && PYTHONPATH=$ROOT "$VENV/bin/python" -m kernels.build --machine "$machine" "$folder" 7>&- >&2) ||
      die "the kernels cannot be compiled for $machine; see the message above, fix the cause and run again"
    printf '%s' "$key" >"$folder.key"
  fi
  exec 7>&-
}

# binutils MACHINE: Debian's package with the linker for this machine.
binutils() {
  if [ "$1" = "$(uname -m)" ]; then printf binutils; else printf 'binutils-%s-linux-gnu' "${1//_/-}"; fi
}
