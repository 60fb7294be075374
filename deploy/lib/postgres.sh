# shellcheck shell=bash
# A throw-away PostgreSQL cluster on a random loopback port, run by an unprivileged user, with no durability.
#
#   postgres_start     exports SEALIFT_TEST_POSTGRES_URL; an URL that is already set is used as it is

postgres_start() {
  if [[ -n ${SEALIFT_TEST_POSTGRES_URL:-} ]]; then
    note "postgres: using SEALIFT_TEST_POSTGRES_URL"
    return 0
  fi
  local bin dir port attempt
  bin=$(postgres_bin) || return 1
  dir=$(mktemp -d "${TMPDIR:-/tmp}/sealift-postgres.XXXXXX") || return 1
  cleanup_add postgres_stop "$dir"
  # initdb and postgres refuse to run as root.
  [[ $EUID -ne 0 ]] || chown "$(postgres_user)" "$dir"
  postgres_run "$dir" "$bin/initdb" --pgdata "$dir/data" --username sealift --auth trust --encoding UTF8 --locale C \
    --no-sync >"$dir.log" 2>&1 || { cat "$dir.log" >&2; fail "initdb failed"; return 1; }
  # The free port may be taken by another program before the server binds it.
  for attempt in 1 2 3; do
    port=$(free_port)
    if postgres_launch "$dir" "$bin" "$port"; then
      export SEALIFT_TEST_POSTGRES_URL="postgres://sealift@127.0.0.1:$port/postgres"
      note "postgres: $("$bin/postgres" --version) on 127.0.0.1:$port"
      return 0
    fi
  done
  tail -n 20 "$dir.log" >&2
  fail "PostgreSQL did not start after $attempt tries"
}

postgres_launch() {
  local dir=$1 bin=$2 port=$3
  postgres_run "$dir" "$bin/pg_ctl" start --pgdata "$dir/data" --wait --timeout 30 --silent --log "$dir/data/server.log" \
    --options "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories='' -c max_connections=300 \
-c fsync=off -c synchronous_commit=off -c full_page_writes=off -c shared_buffers=64MB" >>"$dir.log" 2>&1
}

postgres_stop() {
  local dir=$1 bin
  [[ -d $dir ]] || return 0
  if bin=$(postgres_bin) && [[ -s $dir/data/postmaster.pid ]]; then
    postgres_run "$dir" "$bin/pg_ctl" stop --pgdata "$dir/data" --mode immediate --wait --timeout 20 --silent
  fi
  rm -rf "$dir" "$dir.log"
}

# The newest version of Debian's, else whatever is on the PATH.
postgres_bin() {
  local found
  found=$(compgen -G '/usr/lib/postgresql/*/bin/initdb' | sort -V | tail -n 1)
  [[ -n $found ]] || found=$(command -v initdb) || { fail "PostgreSQL is not installed"; return 1; }
  dirname "$found"
}

postgres_user() { if id postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi; }

# postgres_run DIR COMMAND...: as the unprivileged user, in a folder it may enter, with a deadline.
postgres_run() {
  local dir=$1; shift
  if [[ $EUID -eq 0 ]]; then
    (cd "$dir" && timeout 90 runuser -u "$(postgres_user)" -- env -i PATH="$PATH" LC_ALL=C "$@" </dev/null)
  else
    (cd "$dir" && timeout 90 "$@" </dev/null)
  fi
}
