# shellcheck shell=bash
# What the tests find in their environment, beside the engine and PostgreSQL: two registries and the demo images.
#
#   fixtures_start ROOT     exports
#     SEALIFT_TEST_REGISTRY                       host:port of an open registry on the loopback
#     SEALIFT_TEST_AUTH_REGISTRY, _USER, _PASSWORD  the same images behind basic auth
#     SEALIFT_TEST_IMAGE_{OK_1,OK_2,UNHEALTHY,FLAP,SLOW,CRASH,PLAIN}  full references (registry/repository:tag)

fixtures_start() {
  local root=$1 storage open locked
  storage=$(mktemp -d "${TMPDIR:-/tmp}/sealift-images.XXXXXX") || return 1
  cleanup_add rm -rf "$storage"
  SEALIFT_TEST_AUTH_USER=sealift SEALIFT_TEST_AUTH_PASSWORD=$(random_name)$(random_name)
  registry_start open "$storage" || return 1
  registry_start locked "$storage" "$SEALIFT_TEST_AUTH_USER" "$SEALIFT_TEST_AUTH_PASSWORD" || return 1
  export SEALIFT_TEST_AUTH_USER SEALIFT_TEST_AUTH_PASSWORD
  export SEALIFT_TEST_REGISTRY=$open SEALIFT_TEST_AUTH_REGISTRY=$locked
  note "registry: $SEALIFT_TEST_REGISTRY, with a password $SEALIFT_TEST_AUTH_REGISTRY"

  cleanup_add fixtures_clear_engine "$open"
  # The first build compiles the program; the others reuse it and may run side by side.
  fixtures_image "$root" OK_1 ok:1.0.0 || return 1
  local builds=() pid
  fixtures_image "$root" OK_2 ok:2.0.0 & builds+=($!)
  fixtures_image "$root" UNHEALTHY unhealthy:2.0.1 & builds+=($!)
  fixtures_image "$root" FLAP flap:2.0.2 & builds+=($!)
  fixtures_image "$root" SLOW slow:2.0.3 & builds+=($!)
  fixtures_image "$root" CRASH crash:2.0.4 & builds+=($!)
  fixtures_image "$root" PLAIN plain:2.0.5 & builds+=($!)
  for pid in "${builds[@]}"; do wait "$pid" || { fail "a demo image could not be built"; return 1; }; done
  local name tag
  for name in OK_1 OK_2 UNHEALTHY FLAP SLOW CRASH PLAIN; do
    tag=${name,,}
    export "SEALIFT_TEST_IMAGE_$name=$SEALIFT_TEST_REGISTRY/sealift-test/app:${tag//_/-}"
  done
  note "images: $SEALIFT_TEST_REGISTRY/sealift-test/app:{ok-1,ok-2,unhealthy,flap,slow,crash,plain}"
}

fixtures_image() {
  local tag=${2,,}
  "$1/deploy/demo-app/build.sh" "$SEALIFT_TEST_REGISTRY" sealift-test/app "${tag//_/-}" "$3" >/dev/null
}

# Images of our registry are ours, and so is every container made from one; a test should have removed its own.
fixtures_clear_engine() {
  local registry=$1 left names
  left=$(timeout 30 docker ps --all --no-trunc --format '{{.ID}} {{.Image}} {{.Names}}' | grep -F " $registry/" || true)
  if [[ -n $left ]]; then
    say "warning: tests left containers behind, removing them:"
    say "$left"
    cut -d' ' -f1 <<<"$left" | xargs timeout 60 docker rm --force --volumes >/dev/null
  fi
  # By name: other test runs on this machine have images of the same content, which are theirs.
  names=$(timeout 30 docker images --digests --format '{{.Repository}} {{.Tag}} {{.Digest}}' | awk -v r="$registry/" 'index($1, r) == 1 {
    if ($2 != "<none>") print $1 ":" $2
    if ($3 != "<none>") print $1 "@" $3
  }' | sort -u)
  # The last tag takes the digest with it.
  [[ -z $names ]] || xargs timeout 120 docker rmi <<<"$names" >/dev/null 2>&1 || true
}
