# shellcheck shell=bash
# The Python environment of the conformance tests: other people's gRPC, DSSE and in-toto code.
#
#   venv_use ROOT     makes or reuses ROOT/target/python-venv; exports SEALIFT_TEST_PYTHON (its interpreter)

venv_use() {
  local root=$1 dir=$1/target/python-venv wanted=$1/tests/python/requirements.txt
  if ! cmp -s "$wanted" "$dir/requirements.txt"; then
    note "python: making $dir from ${wanted#"$root"/}"
    mkdir -p "$root/target"
    rm -rf "$dir"
    run_child 120 python3 -m venv "$dir" || { fail "python3 -m venv failed"; return 1; }
    run_child 600 "$dir/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$wanted" \
      || { fail "pip could not install ${wanted#"$root"/}"; return 1; }
    # Written last: a half-made environment is made again.
    cp "$wanted" "$dir/requirements.txt"
  fi
  export SEALIFT_TEST_PYTHON=$dir/bin/python
}
