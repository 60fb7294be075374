# shellcheck shell=bash
# Cargo programs that are not part of the toolchain, built once into target/tools.
#
#   cargo_tool_deny ROOT VARIABLE     puts the path of cargo-deny into VARIABLE

CARGO_DENY_VERSION=0.20.2

cargo_tool_deny() {
  local root=$1 variable=$2 found
  found=$root/target/tools/bin/cargo-deny
  if [[ ! -x $found ]]; then
    if have cargo-deny && [[ $(cargo-deny --version) == "cargo-deny $CARGO_DENY_VERSION" ]]; then
      found=$(command -v cargo-deny)
    else
      # Unoptimised on purpose: it builds in two minutes on two cores and the check itself takes seconds.
      note "cargo-deny: building $CARGO_DENY_VERSION into target/tools (about two minutes, once)"
      CARGO_TARGET_DIR=$root/target/tools/build CARGO_PROFILE_DEV_DEBUG=0 run_child 1500 cargo install cargo-deny \
        --version "$CARGO_DENY_VERSION" --locked --debug --quiet --root "$root/target/tools" || return 1
      rm -rf "$root/target/tools/build"
    fi
  fi
  printf -v "$variable" '%s' "$found"
}
