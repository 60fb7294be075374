# shellcheck shell=bash
# Cargo programs that are not part of the toolchain, built once into target/tools.
#
#   cargo_tool_deny ROOT VARIABLE     puts the path of cargo-deny into VARIABLE
#   cargo_tool_deb ROOT VARIABLE      puts the path of cargo-deb into VARIABLE

CARGO_DENY_VERSION=0.20.2
CARGO_DEB_VERSION=3.8.0

cargo_tool_deny() { cargo_tool "$1" cargo-deny "$CARGO_DENY_VERSION" "$2"; }
cargo_tool_deb() { cargo_tool "$1" cargo-deb "$CARGO_DEB_VERSION" "$2"; }

# cargo_tool ROOT NAME VERSION VARIABLE: ours, else the machine's own of that very version, else built.
cargo_tool() {
  local root=$1 name=$2 version=$3 variable=$4 found
  found=$root/target/tools/bin/$name
  if [[ ! -x $found ]]; then
    if have "$name" && [[ $("$name" --version) == *"$version" ]]; then
      found=$(command -v "$name")
    else
      # Unoptimised on purpose: it builds in two minutes on two cores and its work takes seconds.
      note "$name: building $version into target/tools (about two minutes, once)"
      CARGO_TARGET_DIR=$root/target/tools/build CARGO_PROFILE_DEV_DEBUG=0 run_child 1500 cargo install "$name" \
        --version "$version" --locked --debug --quiet --root "$root/target/tools" || return 1
      rm -rf "$root/target/tools/build"
    fi
  fi
  printf -v "$variable" '%s' "$found"
}
