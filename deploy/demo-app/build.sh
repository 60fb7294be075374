#!/usr/bin/env bash
# Builds a variant of the demo image and pushes it to a registry. Prints the full reference with its digest.
#
#   build.sh REGISTRY REPOSITORY TAG VARIANT      e.g. build.sh 127.0.0.1:5000 demo/app 1.0.0 ok:1.0.0
#
# VARIANT is KIND[:VERSION]; VERSION defaults to TAG. Kinds:
#   ok            healthy at once
#   unhealthy     its health check always fails
#   flap          5 s healthy, 5 s not
#   slow          healthy 5 s after the start
#   crash         exits with 3 at once
#   plain         healthy, without a HEALTHCHECK in the image
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() { sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }

compile() {
  local out=$1
  # Linked statically, because the image is empty beside it; remembered by the source's and compiler's identity.
  local key cached
  key=$({ cat "$here/main.rs"; rustc -vV; } | sha256sum | cut -c1-16)
  cached=${CARGO_TARGET_DIR:-$here/../../target}/demo-app/$key/demo-app
  if [[ ! -x $cached ]]; then
    mkdir -p "$(dirname "$cached")"
    timeout 300 rustc --edition 2024 -O -C target-feature=+crt-static -C panic=abort -C strip=symbols \
      -o "$cached.$$" "$here/main.rs"
    mv "$cached.$$" "$cached"
  fi
  cp "$cached" "$out"
}

main() {
  (( $# == 4 )) || usage
  local registry=$1 repository=$2 tag=$3 kind=${4%%:*} version=$3
  [[ $4 == *:* ]] && version=${4#*:}
  local reference=$registry/$repository:$tag health=ok command=serve edit=''
  case $kind in
    ok) ;;
    unhealthy) health=fail ;;
    flap) health=flap ;;
    slow) health=after:5 edit='/^HEALTHCHECK/s/ CMD/ --start-period=30s CMD/' ;;
    crash) command='exit 3' ;;
    plain) edit='/^HEALTHCHECK/d' ;;
    *) usage ;;
  esac

  local context
  context=$(mktemp -d)
  # shellcheck disable=SC2064 # the value of now is meant
  trap "rm -rf '$context'" EXIT
  compile "$context/demo-app"
  sed "$edit" "$here/Dockerfile" >"$context/Dockerfile"
  # The classic builder: it is in every engine, and buildx is a plug-in that may be missing.
  DOCKER_BUILDKIT=0 timeout 120 docker build --quiet --tag "$reference" \
    --build-arg VERSION="$version" --build-arg HEALTH="$health" --build-arg DEMO_COMMAND="$command" \
    --build-arg REVISION="$(printf '%s' "$version" | sha1sum | cut -c1-40)" "$context" >"$context/log" 2>&1 || { cat "$context/log" >&2; exit 1; }
  timeout 120 docker push --quiet "$reference" >/dev/null

  local digest
  digest=$(docker image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$reference" \
    | sed -n "s|^$registry/$repository@||p" | head -n 1)
  [[ -n $digest ]] || { echo "error: the engine shows no digest for $reference after the push" >&2; exit 1; }
  printf '%s@%s\n' "$reference" "$digest"
}

main "$@"
