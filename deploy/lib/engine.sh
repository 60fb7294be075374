# shellcheck shell=bash
# The container engine: the running one if it answers, else a private one that ends with the script.
#
#   engine_use     afterwards `docker` works; exports DOCKER_HOST when the engine is ours
#
# SEALIFT_OWN_ENGINE=1 starts a private engine even when another one answers.
# Engines from 20.10 (Debian 12) on are supported.

engine_answers() { timeout 10 docker version --format '{{.Server.Version}}' >/dev/null 2>&1; }

engine_use() {
  # A newer client would want the buildx plug-in; the classic builder is in every engine.
  export DOCKER_BUILDKIT=0
  if [[ ${SEALIFT_OWN_ENGINE:-0} != 1 ]] && engine_answers; then
    note "engine: using the one that runs ($(docker version --format '{{.Server.Version}}'), ${DOCKER_HOST:-default socket})"
    return 0
  fi
  engine_start
}

engine_start() {
  [[ $EUID -eq 0 ]] || { fail "no engine answers and starting one needs root; start Docker or set DOCKER_HOST"; return 1; }
  have dockerd || { fail "no engine answers and dockerd is not installed"; return 1; }
  have ip || { fail "ip (package iproute2) is needed to make the private engine's bridge"; return 1; }
  engine_mount_cgroups

  local dir driver
  dir=$(mktemp -d "${TMPDIR:-/tmp}/sealift-engine.XXXXXX") || return 1
  cleanup_add engine_stop "$dir"
  engine_make_bridge "$dir" || return 1
  # dockerd's own choice first; where neither overlay works, plain copies always do.
  for driver in '' vfs; do
    engine_launch "$dir" "$driver" && break
    engine_end_processes "$dir"
    [[ $driver == vfs ]] && { tail -n 30 "$dir/log" >&2; fail "the private engine did not start"; return 1; }
  done
  export DOCKER_HOST="unix://$dir/docker.sock"
  note "engine: started a private one ($(docker version --format '{{.Server.Version}}'), $DOCKER_HOST)"
}

# The bridge, the firewall and containerd's namespaces are the engine's own: another engine on the machine, and the
# machine's firewall, are left as they are. Published ports go through the engine's proxy process.
engine_launch() {
  local dir=$1 driver=$2 name=${1##*.}
  local options=(
    --config-file "$dir/daemon.json" --data-root "$dir/data" --exec-root "$dir/exec" --pidfile "$dir/pid"
    --host "unix://$dir/docker.sock" --bridge "$(cat "$dir/bridge")"
    --iptables=false --ip-masq=false --userland-proxy=true
    --containerd-namespace "sealift-$name" --containerd-plugins-namespace "sealift-plugins-$name"
  )
  [[ -z $driver ]] || options+=(--storage-driver "$driver")
  printf '{}\n' >"$dir/daemon.json"
  # A session of its own: Ctrl-C in the terminal must reach the script first, which then stops the engine in order.
  setsid dockerd "${options[@]}" >"$dir/log" 2>&1 </dev/null &
  local pid=$! deadline=$(( SECONDS + 60 ))
  disown "$pid"
  until DOCKER_HOST="unix://$dir/docker.sock" engine_answers; do
    if process_gone "$pid" || (( SECONDS >= deadline )); then return 1; fi
    sleep 0.2
  done
}

engine_make_bridge() {
  local dir=$1 name attempt
  for attempt in 1 2 3 4 5 6 7 8; do
    name="sl$(random_name)"
    local net="172.$(( 20 + RANDOM % 12 )).$(( RANDOM % 256 ))"
    # A network that overlaps an existing route would take it over.
    ip -4 route show | grep -q "^${net%.*}\." && continue
    ip link add name "$name" type bridge || continue
    printf '%s\n' "$name" >"$dir/bridge"
    ip addr add "$net.1/24" dev "$name" && ip link set "$name" up && return 0
    ip link del "$name"
  done
  fail "no free network for the private engine's bridge after $attempt tries"
}

# Machines without systemd may not have mounted the control groups; the same as Debian's init script for Docker does.
engine_mount_cgroups() {
  mountpoint -q /sys/fs/cgroup && return 0
  [[ -d /sys/fs/cgroup ]] || return 0
  note "engine: mounting the control groups at /sys/fs/cgroup"
  mount -t cgroup2 none /sys/fs/cgroup && cleanup_add umount -l /sys/fs/cgroup
}

# engine_stop DIR: ends the private engine in DIR with its containers, and nothing else.
engine_stop() {
  local dir=$1 bridge
  [[ -d $dir ]] || return 0
  local socket="unix://$dir/docker.sock"
  if DOCKER_HOST=$socket engine_answers; then
    DOCKER_HOST=$socket timeout 60 docker ps -aq | DOCKER_HOST=$socket xargs -r timeout 60 docker rm -f -v >/dev/null 2>&1
  fi
  engine_end_processes "$dir"
  bridge=$(cat "$dir/bridge" 2>/dev/null) && ip link del "$bridge" 2>/dev/null
  rm -rf --one-file-system "$dir"
}

# dockerd ends its containerd itself; after a SIGKILL it cannot, so look for both by pid file and program name.
engine_end_processes() {
  local dir=$1 file pid mount
  for file in "$dir/pid" "$dir/exec/containerd/containerd.pid"; do
    pid=$(cat "$file" 2>/dev/null) || continue
    [[ $(readlink "/proc/$pid/exe" 2>/dev/null) =~ /(dockerd|containerd)$ ]] || continue
    end_process "$pid" 20
  done
  # What a killed engine leaves mounted, deepest first.
  awk -v dir="$dir/" 'index($2, dir) == 1 { print $2 }' /proc/mounts | sort -r | while read -r mount; do umount -l "$mount"; done
  return 0
}
