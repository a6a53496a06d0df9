#!/usr/bin/env bash
# Runs the suites that draw at random again and again, each time with other seeds,
# until MINUTES (30) are over or one fails; its log then names the seed.
#
# Variables: MINUTES; PACKAGES, the suites; CAIRN_SEED, a seed for all of them (random).
set -euo pipefail
cd "$(dirname "$0")/.."

minutes=${MINUTES:-30}
read -ra packages <<<"${PACKAGES:-./test/crash ./test/events ./test/linear ./test/netcluster ./test/netcluster/cores ./test/splits ./test/store}"
export CAIRN_SEED=${CAIRN_SEED:-random}
round=0
while [ $SECONDS -lt $((minutes * 60)) ]; do
  round=$((round + 1))
  echo "== round $round (after $SECONDS s)"
  # A test's log, with its seed, is shown if it fails.
  go test -count=1 -timeout 20m "${packages[@]}"
done
echo "== $round rounds without a failure"
