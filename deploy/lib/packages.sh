# shellcheck shell=bash
# Debian packages: says what is missing and why, installs only that, and leaves no service running that was not asked for.
#
#   package_need COMMAND|PATH PACKAGE REASON    note a need; nothing happens yet
#   packages_install                            install what is missing of all that was noted

PACKAGES_MISSING=()
PACKAGES_POLICY=/usr/sbin/policy-rc.d

# COMMAND may be a glob of absolute paths (PostgreSQL's programs are not on the PATH in Debian).
package_need() {
  local probe=$1 package=$2 reason=$3
  if [[ $probe == /* ]]; then
    compgen -G "$probe" >/dev/null && return 0
  else
    have "$probe" && return 0
  fi
  PACKAGES_MISSING+=("$package")
  note "missing: $package ($reason)"
}

packages_install() {
  (( ${#PACKAGES_MISSING[@]} > 0 )) || return 0
  local wanted=("${PACKAGES_MISSING[@]}") status=0
  PACKAGES_MISSING=()
  have apt-get || { fail "apt-get not found: please install by hand: ${wanted[*]}"; return 1; }
  [[ $EUID -eq 0 ]] || { fail "installing needs root; please run: apt-get install ${wanted[*]}"; return 1; }

  note "installing from Debian: ${wanted[*]}"
  local before
  before=$(packages_enabled_units)
  packages_forbid_start
  packages_apt "${wanted[@]}" || status=$?
  packages_allow_start
  packages_disable_new "$before"
  (( status == 0 )) || fail "apt-get could not install: ${wanted[*]}"
}

packages_apt() {
  local log
  log=$(mktemp) || return 1
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 -o Acquire::Retries=3)
  # A third-party source that cannot be reached must not stop Debian's own packages: only the installation decides.
  run_child 300 "${apt[@]}" update >"$log" 2>&1 || true
  if run_child 900 "${apt[@]}" install -y --no-install-recommends --no-upgrade "$@" >>"$log" 2>&1; then
    rm -f "$log"
    return 0
  fi
  tail -n 30 "$log" >&2
  rm -f "$log"
  return 1
}

# Debian starts a service as soon as its package is installed, unless policy-rc.d says 101. A policy that is already
# there belongs to the machine's owner and stays.
packages_forbid_start() {
  PACKAGES_POLICY_OURS=
  [[ -e $PACKAGES_POLICY ]] && return 0
  printf '#!/bin/sh\n# Temporary, made by sealift: packages must not start services while they are installed.\nexit 101\n' \
    >"$PACKAGES_POLICY"
  chmod 0755 "$PACKAGES_POLICY"
  PACKAGES_POLICY_OURS=yes
  cleanup_add packages_allow_start
}

packages_allow_start() {
  [[ -n ${PACKAGES_POLICY_OURS:-} ]] || return 0
  PACKAGES_POLICY_OURS=
  rm -f "$PACKAGES_POLICY"
}

# Debian also makes a new service start at the next boot. That was not asked for either.
packages_disable_new() {
  local units
  mapfile -t units < <(comm -13 <(printf '%s\n' "$1") <(packages_enabled_units))
  (( ${#units[@]} > 0 )) || return 0
  note "not started at boot (use systemctl enable if you want that): ${units[*]}"
  timeout 60 systemctl disable --quiet "${units[@]}" >/dev/null 2>&1 || say "warning: systemctl disable failed"
}

packages_enabled_units() {
  have systemctl || return 0
  timeout 30 systemctl list-unit-files --state=enabled --plain --no-legend 2>/dev/null | awk '{ print $1 }' | sort
}
