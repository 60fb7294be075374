# shellcheck shell=bash
# Compose v2 for the tests, beside Debian 12's own v1: the package of the next Debian, from the mirror that this machine uses,
# verified by apt, unpacked into a folder, never installed.
#
#   compose_v2_fetch ROOT VARIABLE     puts the path of the program into VARIABLE; fails with a reason when it cannot be had
#
# SEALIFT_COMPOSE_V2=PATH is taken instead, as it is.

COMPOSE_V2_SUITE=trixie

compose_v2_fetch() {
  local found=${SEALIFT_COMPOSE_V2:-$1/target/tools/compose-v2/docker-compose} variable=$2
  if [[ -n ${SEALIFT_COMPOSE_V2:-} ]]; then
    compose_v2_works "$found" || { fail "SEALIFT_COMPOSE_V2: $found is no Compose v2"; return 1; }
  elif ! compose_v2_works "$found"; then
    compose_v2_unpack "$(dirname "$found")" || return 1
    compose_v2_works "$found" || { fail "the unpacked $found does not run here"; return 1; }
  fi
  printf -v "$variable" '%s' "$found"
}

compose_v2_works() { [[ -x $1 && $(timeout 20 "$1" version --short 2>/dev/null) =~ ^v?[2-9] ]]; }

# apt reads only what is named here: nothing of it is known to the machine's own package lists.
compose_v2_unpack() {
  local folder=$1 work mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
  have apt-get && have dpkg-deb || { fail "no apt-get: Compose v2 is not fetched"; return 1; }
  mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null \
    | awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }')
  [[ -n $mirror && -r $keyring ]] || { fail "no mirror of Debian is configured: Compose v2 is not fetched"; return 1; }
  note "compose: fetching Compose v2 ($COMPOSE_V2_SUITE) into ${folder#"$PWD"/}"
  work=$(mktemp -d "${TMPDIR:-/tmp}/sealift-compose.XXXXXX") || return 1
  if compose_v2_download "$work" "$mirror" "$keyring" >"$work/log" 2>&1 \
    && dpkg-deb -x "$work"/*.deb "$work/tree" 2>>"$work/log"; then
    local program
    program=$(find "$work/tree" -type f -name docker-compose -perm -u+x | head -n 1)
    if [[ -n $program ]] && mkdir -p "$folder" && cp "$program" "$folder/docker-compose.new"; then
      mv "$folder/docker-compose.new" "$folder/docker-compose"
      rm -rf "$work"
      return 0
    fi
  fi
  tail -n 5 "$work/log" >&2
  rm -rf "$work"
  fail "Compose v2 could not be fetched from $COMPOSE_V2_SUITE"
}

compose_v2_download() {
  local work=$1 mirror=$2 keyring=$3
  mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/preferences.d" "$work/sources.d" || return 1
  # Whoever downloads for apt has no rights here: the folder must be theirs to read.
  chmod 755 "$work"
  printf 'deb [signed-by=%s] %s %s main\n' "$keyring" "$mirror" "$COMPOSE_V2_SUITE" >"$work/sources.list"
  local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -q
    -o "Dir::Etc::sourcelist=$work/sources.list" -o "Dir::Etc::sourceparts=$work/sources.d"
    -o "Dir::Etc::preferences=/dev/null" -o "Dir::Etc::preferencesparts=$work/preferences.d"
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work/cache"
    -o Acquire::Retries=2 -o Acquire::Languages=none -o APT::Sandbox::User=root)
  (
    cd "$work" || exit 1
    timeout 120 "${apt[@]}" update && timeout 180 "${apt[@]}" download docker-compose
  )
}
