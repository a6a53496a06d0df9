#!/usr/bin/env bash
# Runs the public Ceph S3 conformance suite against a cairn of its own on loopback, with two accounts, and counts.
#
#   S3TESTS=DIR test/conformance/run.sh [PYTEST ARGUMENT...]
#   LC_DEBUG=10 S3TESTS=DIR test/conformance/run.sh
#
# DIR is a checkout of github.com/ceph/s3-tests. Without arguments all functions of test_s3.py and test_headers.py run that
# AWS itself passes (-m 'not fails_on_aws'). A function passes if it does with all its parameters.
#
# With LC_DEBUG a day of lifecycle rules has so many seconds, and without arguments the functions about lifecycle rules and
# restores run instead, those that wait for rules to act included (AWS would take days, so the suite says that it fails them).
#
# Needs a python3 with boto3 (a new one: what it does not know, its tests fail for) and, from Debian: python3-pytest
# python3-pytest-xdist python3-pytest-timeout python3-munch python3-isodate python3-tz python3-httplib2 python3-lxml
# python3-gevent python3-requests. python3 may be another than Debian's, if it is of the same minor version.
#
# Variables: OUT the folder for junit.xml, failed.txt (each failing function with its error) and the logs (a new one in
# TMPDIR); WORKERS how many tests at once (2); PYTHON (python3); TEST_TIMEOUT seconds of one test (120, and 20 days of rules with LC_DEBUG); CAIRN a binary (built
# from this tree); SERVER_ARGS for cairn server. With ENDPOINT (host:port) nothing is started; then MAIN_KEY, MAIN_SECRET,
# ALT_KEY and ALT_SECRET are the keys of two accounts there, which all workers share.
#
# The exit status tells whether the suite ran, not whether all of it passed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${S3TESTS:?names a checkout of github.com/ceph/s3-tests}"
S3TESTS=$(cd "$S3TESTS" && pwd)
OUT=${OUT:-$(mktemp -d "${TMPDIR:-/tmp}/conformance.XXXXXX")}
mkdir -p "$OUT"
OUT=$(cd "$OUT" && pwd)
PYTHON=${PYTHON:-python3}
WORKERS=${WORKERS:-2}

if [ -z "${ENDPOINT:-}" ]; then
  if [ -z "${CAIRN:-}" ]; then
    CAIRN=$OUT/cairn
    (cd "$here/../.." && "${GO:-go}" build -o "$CAIRN" ./cmd/cairn)
  fi
  rm -rf "$OUT/data"
  mkdir -p "$OUT/data"
  # Accounts of their own for each worker: a test that lists all buckets must not see those of others.
  (
    umask 077
    {
      echo accounts:
      for ((i = 0; i < WORKERS; i++)); do
        for name in main alt; do
          echo "  - {name: $name$i, access_key: ${name^^}KEY$i, secret_key: the-secret-of-$name-$i}"
        done
      done
    } >"$OUT/cairn.yaml"
  )
  # shellcheck disable=SC2086
  "$CAIRN" server --config "$OUT/cairn.yaml" \
    --data-dir "$OUT/data" --listen 127.0.0.1:0 --admin-listen 127.0.0.1:0 ${LC_DEBUG:+--lifecycle-day ${LC_DEBUG}s} ${SERVER_ARGS:-} >"$OUT/server.log" 2>&1 &
  server=$!
  trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -rf "$OUT/data"' EXIT
  for _ in $(seq 600); do
    ENDPOINT=$(sed -n 's|.*msg=serving s3=http://\([^ ]*\) .*|\1|p' "$OUT/server.log")
    [ -z "$ENDPOINT" ] || break
    kill -0 "$server" || { cat "$OUT/server.log" >&2; exit 1; }
    sleep 0.1
  done
fi
export ENDPOINT S3TEST_CONF=$OUT/s3tests.conf
packages=$(dpkg -L python3-pytest | sed -n 's|/pytest/__init__.py$||p')
# Debian's folder comes last, so that a newer boto3 of this python counts.
run() { PYTHONPATH=$here:$S3TESTS DEBIAN=$packages "$PYTHON" -c 'import os, sys
sys.path.append(os.environ["DEBIAN"])
import suite
sys.exit(suite.main(sys.argv[1:]))' "$@"; }

run configure "$S3TEST_CONF" "$WORKERS"
cd "$S3TESTS"
if [ $# -eq 0 ] && [ -n "${LC_DEBUG:-}" ]; then
  set -- -m 'lifecycle or lifecycle_expiration or lifecycle_transition or cloud_restore' s3tests/functional/test_s3.py
elif [ $# -eq 0 ]; then
  set -- -m 'not fails_on_aws' s3tests/functional/test_s3.py s3tests/functional/test_headers.py
fi
run test -q -p no:cacheprovider -p suite -n "$WORKERS" --timeout "${TEST_TIMEOUT:-$((120 + 20 * ${LC_DEBUG:-0}))}" --junitxml="$OUT/junit.xml" "$@" >"$OUT/pytest.log" 2>&1 || true
[ -s "$OUT/junit.xml" ] || { tail -20 "$OUT/pytest.log" >&2; exit 1; }
run summary "$OUT/junit.xml" "$OUT/failed.txt"
echo "$OUT"
