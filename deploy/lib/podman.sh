# shellcheck shell=bash
# A private Podman with its Docker-compatible API on a socket, for the tests. Everything of it is in one folder and ends with the
# script; the machine's own Podman, its images and its settings are neither read nor changed.
#
#   podman_start REGISTRIES VARIABLE   puts unix://…/podman.sock into VARIABLE; REGISTRIES (host:port on the loopback, with spaces
#                                      between them) are spoken to without TLS
#
# Podman has its health checks run by timers of systemd. Where systemd does not run, a loop here takes the timers' place.

podman_packages() {
  package_need podman podman "Podman hosts"
  package_need /usr/lib/podman/netavark netavark "networks of Podman"
  package_need /usr/lib/podman/aardvark-dns aardvark-dns "names in networks of Podman"
  package_need iptables iptables "netavark calls it"
  package_need /usr/libexec/podman/catatonit catatonit "services with init: true on Podman"
}

podman_start() {
  local registries=$1 variable=$2 dir pid deadline
  [[ $EUID -eq 0 ]] || { fail "a private Podman needs root"; return 1; }
  engine_mount_cgroups
  dir=$(mktemp -d "${TMPDIR:-/tmp}/sealift-podman.XXXXXX") || return 1
  cleanup_add podman_stop "$dir"
  podman_configure "$dir" "$registries" || return 1
  setsid env -i PATH="$PATH" HOME="$dir" TMPDIR="$dir/tmp" \
    CONTAINERS_CONF="$dir/containers.conf" CONTAINERS_STORAGE_CONF="$dir/storage.conf" \
    CONTAINERS_REGISTRIES_CONF="$dir/registries.conf" DISABLE_HC_SYSTEMD=true \
    podman system service --time=0 "unix://$dir/podman.sock" >"$dir/log" 2>&1 </dev/null &
  pid=$!
  disown "$pid"
  printf '%s\n' "$pid" >"$dir/pid"
  deadline=$(( SECONDS + 60 ))
  until DOCKER_HOST="unix://$dir/podman.sock" engine_answers; do
    if process_gone "$pid" || (( SECONDS >= deadline )); then
      tail -n 20 "$dir/log" >&2
      fail "Podman did not start"
      return 1
    fi
    sleep 0.2
  done
  podman_run_healthchecks "$dir" &
  printf '%s\n' "$!" >"$dir/timer"
  disown "$!"
  printf -v "$variable" '%s' "unix://$dir/podman.sock"
  note "podman: started a private one ($(podman_version), unix://$dir/podman.sock)"
}

podman_version() { podman --version 2>/dev/null | awk '{ print $NF }'; }

podman_configure() {
  local dir=$1 registries=$2 registry driver=overlay
  mkdir -p "$dir/root" "$dir/run" "$dir/networks" "$dir/volumes" "$dir/tmp" || return 1
  # Overlay does not work on every file system below; plain copies always do.
  podman_can_overlay "$dir" || driver=vfs
  printf '[storage]\ndriver = "%s"\ngraphroot = "%s/root"\nrunroot = "%s/run"\n' "$driver" "$dir" "$dir" >"$dir/storage.conf"
  # Podman's own choice is above what root of a machine inside of another one may give.
  cat >"$dir/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=$(ulimit -Hn):$(ulimit -Hn)", "nproc=16384:16384"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
tmp_dir = "$dir/run/libpod"
volume_path = "$dir/volumes"
[network]
network_backend = "netavark"
network_config_dir = "$dir/networks"
CONF
  for registry in $registries; do
    printf '[[registry]]\nlocation = "%s"\ninsecure = true\n' "$registry"
  done >"$dir/registries.conf"
}

podman_can_overlay() {
  local probe=$1/overlay-probe works=1
  mkdir -p "$probe/lower" "$probe/upper" "$probe/work" "$probe/merged" || return 1
  if mount -t overlay overlay -o "lowerdir=$probe/lower,upperdir=$probe/upper,workdir=$probe/work" "$probe/merged" 2>/dev/null; then
    umount "$probe/merged"
    works=0
  fi
  rm -rf "$probe"
  return "$works"
}

# podman_at DIR ARGUMENT...: the command line on the private Podman.
podman_at() {
  local dir=$1; shift
  env -i PATH="$PATH" HOME="$dir" TMPDIR="$dir/tmp" CONTAINERS_CONF="$dir/containers.conf" \
    CONTAINERS_STORAGE_CONF="$dir/storage.conf" CONTAINERS_REGISTRIES_CONF="$dir/registries.conf" podman "$@"
}

# What systemd's timers would do, once a second for every container that has a health check.
podman_run_healthchecks() {
  local dir=$1 id
  while ! process_gone "$(cat "$dir/pid" 2>/dev/null)"; do
    for id in $(timeout 10 podman --remote --url "unix://$dir/podman.sock" ps --quiet --no-trunc 2>/dev/null); do
      timeout 10 podman --remote --url "unix://$dir/podman.sock" healthcheck run "$id" >/dev/null 2>&1
    done
    sleep 1
  done
}

# podman_stop DIR: ends the private Podman in DIR with its containers, and nothing else.
podman_stop() {
  local dir=$1 pid mount
  [[ -d $dir ]] || return 0
  pid=$(cat "$dir/timer" 2>/dev/null) && end_process "$pid" 5
  timeout 60 podman --remote --url "unix://$dir/podman.sock" rm --all --force --time 1 >/dev/null 2>&1
  timeout 30 podman --remote --url "unix://$dir/podman.sock" network prune --force >/dev/null 2>&1
  pid=$(cat "$dir/pid" 2>/dev/null) && [[ $(readlink "/proc/$pid/exe" 2>/dev/null) == */podman ]] && end_process "$pid" 20
  awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do umount -l "$mount"; done
  rm -rf --one-file-system "$dir"
}
