# shellcheck shell=bash
# Throw-away image registries on a random loopback port (Debian's docker-registry), with their own configuration.
#
#   registry_start VARIABLE [STORAGE_DIR [USER PASSWORD]]
#       starts one, puts host:port into VARIABLE and adds its end to the clean-up. Two registries may share a storage
#       folder: that gives the same images once open and once behind a password. USER and PASSWORD ask for basic auth.

registry_start() {
  local variable=$1 storage=${2:-} user=${3:-} password=${4:-} dir
  dir=$(mktemp -d "${TMPDIR:-/tmp}/sealift-registry.XXXXXX") || return 1
  cleanup_add rm -rf "$dir"
  registry_config "${storage:-$dir/storage}" >"$dir/config.yml"
  if [[ -n $user ]]; then
    registry_htpasswd "$user" "$password" >"$dir/htpasswd" || return 1
    printf 'auth:\n  htpasswd:\n    realm: sealift-test\n    path: %s\n' "$dir/htpasswd" >>"$dir/config.yml"
  fi

  # Without OTEL and bugsnag settings from the caller's environment, which the registry would read.
  env -i PATH="$PATH" setsid docker-registry serve "$dir/config.yml" >"$dir/log" 2>&1 </dev/null &
  local pid=$! address='' deadline=$(( SECONDS + 30 ))
  disown "$pid"
  cleanup_add end_process "$pid" 5
  # The kernel chooses the port and the registry logs it: no race with other programs.
  until [[ -n $address ]] && registry_answers "$address"; do
    if process_gone "$pid" || (( SECONDS >= deadline )); then
      tail -n 20 "$dir/log" >&2
      fail "the registry did not start"
      return 1
    fi
    sleep 0.1
    address=$(sed -n 's/.*listening on \(127\.0\.0\.1:[0-9]*\).*/\1/p' "$dir/log" | head -n 1)
  done
  printf -v "$variable" '%s' "$address"
}

# 401 is an answer too: that is how a registry with a password says hello.
registry_answers() {
  python3 - "http://$1/v2/" <<'PYTHON'
import sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
try:
    opener.open(sys.argv[1], timeout=3)
except urllib.error.HTTPError as answer:
    sys.exit(0 if answer.code == 401 else 1)
except OSError:
    sys.exit(1)
PYTHON
}

registry_config() {
  cat <<YAML
version: 0.1
log: { level: info, accesslog: { disabled: true } }
storage:
  filesystem: { rootdirectory: "$1" }
  delete: { enabled: true }
http:
  addr: 127.0.0.1:0
YAML
}

# One htpasswd line with bcrypt, the only scheme the registry reads; perl is on every Debian and knows crypt(3).
registry_htpasswd() {
  REGISTRY_PASSWORD=$2 perl -e '
    open my $random, "<:raw", "/dev/urandom" or die "cannot read random bytes: $!";
    read $random, my $bytes, 22;
    my @set = (".", "/", "A".."Z", "a".."z", 0..9);
    my $salt = join "", map { $set[ord($_) % 64] } split //, $bytes;
    my $hash = crypt($ENV{REGISTRY_PASSWORD}, "\$2b\$05\$" . substr($salt, 0, 21) . ".");
    die "this libcrypt has no bcrypt\n" unless defined $hash && $hash =~ /^\$2b\$/;
    print "$ARGV[0]:$hash\n";
  ' "$1"
}
