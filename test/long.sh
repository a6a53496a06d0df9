#!/usr/bin/env bash
# The longer suites, bounded in time: more operations beside the model, more power
# cuts, every fuzz target for a moment, a key with 100,000 versions, a store with
# many objects opened again. About ten minutes on 2 cores.
#
# Variables: STEPS operations beside the model (100000), ROUNDS power cuts of whole
# stores (30), HISTORIES random histories of a bucket with lifecycle rules (100),
# FAULTS places in a move between storage classes where each kind of fault strikes
# (12), SECONDS_DRIVE seconds of power cuts of one drive (20), FUZZTIME per fuzz
# target (4s; 0 leaves them out), OBJECTS for the restart and lifecycle rules
# (200000; 0 leaves them out).
set -euo pipefail
cd "$(dirname "$0")/.."

go test -count=1 -timeout 20m ./test/store -run '^TestVersionsModel$' -store.steps="${STEPS:-100000}"
go test -tags long -count=1 -timeout 10m ./test/store -run '^TestManyVersions'
go test -count=1 -timeout 10m ./test/crash -crash.rounds="${ROUNDS:-30}"
go test -count=1 -timeout 10m ./test/background -run '^TestLifecycleHistories$' -histories="${HISTORIES:-100}"
go test -count=1 -timeout 10m ./test/background -run '^TestLifecycleFaults$' -faults="${FAULTS:-12}"
go test -count=1 -timeout 10m ./storage/drive -run 'Crash' -crash.seconds="${SECONDS_DRIVE:-20}"

if [ "${FUZZTIME:-4s}" != 0 ]; then
  grep -rl --include='*_test.go' '^func Fuzz' . | while read -r file; do
    sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$file" | while read -r target; do
      go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-4s}" "./$(dirname "$file")" </dev/null
    done
  done
fi

if [ "${OBJECTS:-200000}" != 0 ]; then
  go test -tags scale -count=1 -timeout 20m -v ./test/scale -objects "${OBJECTS:-200000}" -versions "${OBJECTS:-200000}" -buckets 1000
fi
