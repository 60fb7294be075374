# shellcheck shell=bash
# Cargo programs that are not part of the toolchain, built once into target/tools.
#
#   cargo_tool_deny ROOT VARIABLE     puts the path of cargo-deny into VARIABLE
#   cargo_tool_deny_ahead ROOT        begins to build cargo-deny, if it must be, with what processor time nothing else wants
#   cargo_tool_deb ROOT VARIABLE      puts the path of cargo-deb into VARIABLE

CARGO_DENY_VERSION=0.20.2
CARGO_DEB_VERSION=3.8.0

cargo_tool_deny() { cargo_tool_wait; cargo_tool "$1" cargo-deny "$CARGO_DENY_VERSION" "$2"; }
cargo_tool_deb() { cargo_tool "$1" cargo-deb "$CARGO_DEB_VERSION" "$2"; }

CARGO_TOOL_AHEAD=
cargo_tool_deny_ahead() {
  local root=$1
  [[ ! -x $root/target/tools/bin/cargo-deny ]] && ! have cargo-deny || return 0
  set -m
  cargo_tool_build "$root" cargo-deny "$CARGO_DENY_VERSION" nice -n 19 timeout --foreground 1500 </dev/null >/dev/null 2>&1 &
  CARGO_TOOL_AHEAD=$!
  set +m
  cleanup_add cargo_tool_end "$CARGO_TOOL_AHEAD"
}
cargo_tool_end() { kill -TERM -- "-$1" 2>/dev/null || true; }
# What went wrong is told where it is built again.
cargo_tool_wait() {
  [[ -z $CARGO_TOOL_AHEAD ]] || wait "$CARGO_TOOL_AHEAD" || true
  CARGO_TOOL_AHEAD=
}

# cargo_tool_build ROOT NAME VERSION RUNNER...: unoptimised on purpose: it builds in two minutes on two cores and its work takes seconds.
cargo_tool_build() {
  local root=$1 name=$2 version=$3
  shift 3
  CARGO_TARGET_DIR=$root/target/tools/build CARGO_PROFILE_DEV_DEBUG=0 "$@" cargo install "$name" \
    --version "$version" --locked --debug --quiet --root "$root/target/tools" || return 1
  rm -rf "$root/target/tools/build"
}

# cargo_tool ROOT NAME VERSION VARIABLE: ours, else the machine's own of that very version, else built.
cargo_tool() {
  local root=$1 name=$2 version=$3 variable=$4 found
  found=$root/target/tools/bin/$name
  if [[ ! -x $found ]]; then
    if have "$name" && [[ $("$name" --version) == *"$version" ]]; then
      found=$(command -v "$name")
    else
      note "$name: building $version into target/tools (about two minutes, once)"
      cargo_tool_build "$root" "$name" "$version" run_child 1500 || return 1
    fi
  fi
  printf -v "$variable" '%s' "$found"
}
