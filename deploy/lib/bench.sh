# shellcheck shell=bash
# What benchmarks on a real engine need.
#
#   bench_packages          the packages of an engine, a registry and a driver in Python
#   bench_build ROOT        Sealift's programs; SEALIFT_BENCH_PROFILE=debug takes unoptimised ones (default: release),
#                           SEALIFT_BENCH_BIN_DIR=DIR those in DIR and builds nothing
#   bench_images ROOT REGISTRY VARIANT    two images of the demo application: BENCH_IMAGE1 and BENCH_IMAGE2

bench_packages() {
  package_need python3 python3 "the driver"
  package_need docker docker.io "command line of the engine"
  if ! { have docker && engine_answers; }; then
    package_need dockerd docker.io "no container engine answers, so a private one is started"
    package_need ip iproute2 "bridge of the private engine"
    package_need iptables iptables "the engine looks for it"
  fi
  package_need docker-registry docker-registry "loopback registry of the images"
}

bench_build() {
  export SEALIFT_BENCH_PROFILE=${SEALIFT_BENCH_PROFILE:-release}
  [[ -z ${SEALIFT_BENCH_BIN_DIR:-} ]] || return 0
  local profile=$SEALIFT_BENCH_PROFILE
  if [[ $profile == debug ]]; then profile=dev; fi
  note "building Sealift ($SEALIFT_BENCH_PROFILE)"
  (cd "$1" && run_child 3000 cargo build --quiet --workspace --bins --profile "$profile")
}

bench_images() {
  BENCH_IMAGE1=$("$1/deploy/demo-app/build.sh" "$2" sealift-bench/app v1 "$3:1.0.0") || return 1
  BENCH_IMAGE2=$("$1/deploy/demo-app/build.sh" "$2" sealift-bench/app v2 "$3:2.0.0") || return 1
  export BENCH_IMAGE1 BENCH_IMAGE2
}
