#!/usr/bin/env bash
# Measures cairn (one process, six drives in three zones) and, if MINIO names its
# binary, MinIO with six drives, in turn and in the same run, and prints a table.
#
#   MINIO=/path/to/minio test/bench/bench.sh
#
# Needs warp (WARP or on the PATH), python3 with botocore for the listing. Variables:
#   PLACES  "tmpfs disk": where the drives lie. tmpfs measures CPU, disk the disk
#   TMPFS   a folder on a tmpfs (default /dev/shm), DISK one on a disk (default .)
#   SIZES   "4KiB 64KiB 1MiB 16MiB"; DUR 10s; CONC 16 clients
#   TOUCH   8G: memory that is used once before each server (of the tmpfs: it must fit in)
#   KEYS    40000 objects for the listing; 0 leaves it out
#   OUT     a folder for the rows as JSON and the servers' logs (default: a new one, printed)
set -euo pipefail
cd "$(dirname "$0")/../.."

places=${PLACES:-tmpfs disk}
tmpfs=${TMPFS:-/dev/shm}
disk=${DISK:-.}
sizes=${SIZES:-4KiB 64KiB 1MiB 16MiB}
keys=${KEYS:-40000}
touch=${TOUCH:-8G}
out=${OUT:-$(mktemp -d)}
export DUR=${DUR:-10s} CONC=${CONC:-16}
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ -n "${WARP:-}" ]; then PATH=$(dirname "$WARP"):$PATH; fi
command -v warp >/dev/null || { echo "warp is needed: github.com/minio/warp"; exit 1; }
go build -o "$out/cairn" ./cmd/cairn

pid=
work=
cleanup() {
  if [ -n "$pid" ]; then kill "$pid" 2>/dev/null || true; wait "$pid" 2>/dev/null || true; fi
  if [ -n "$work" ]; then rm -rf "$work"; fi
  pid='' work=''
}
trap cleanup EXIT

wait_http() { # URL
  for _ in $(seq 300); do
    if curl -sf -o /dev/null "$1"; then return; fi
    kill -0 "$pid" 2>/dev/null || { echo "the server ended, see $out"; exit 1; }
    sleep 0.2
  done
  echo "no answer from $1"
  exit 1
}

measure() { # LABEL HOST:PORT PLACE SIZE
  if [ "$4" = listing ]; then
    test/bench/s3list "$1" "$2" benchkey benchsecret "$pid" bench-listing fill "$keys"
  else
    JSON=$out/$1-$3-$4.json test/bench/s3bench "$1" "$2" benchkey benchsecret "$pid" "$4"
  fi
}

run_cairn() { # PLACE SIZE
  CAIRN_ROOT_ACCESS_KEY=benchkey CAIRN_ROOT_SECRET_KEY=benchsecret "$out/cairn" server --data-dir "$work" \
    --zones 3 --drives-per-zone 2 --listen 127.0.0.1:9710 --admin-listen 127.0.0.1:9711 ${CAIRN_ARGS:-} >"$out/cairn-$1-$2.log" 2>&1 &
  pid=$!
  wait_http http://127.0.0.1:9711/health/ready
  measure cairn 127.0.0.1:9710 "$1" "$2"
}

run_minio() { # PLACE SIZE
  mkdir -p "$work"/drive{1..6}
  MINIO_ROOT_USER=benchkey MINIO_ROOT_PASSWORD=benchsecret MINIO_ROOTDRIVE_THRESHOLD_SIZE=1MB "$MINIO" server --quiet \
    --address 127.0.0.1:9720 --console-address 127.0.0.1:9721 "$work"/drive{1...6} >"$out/minio-$1-$2.log" 2>&1 &
  pid=$!
  wait_http http://127.0.0.1:9720/minio/health/ready
  measure minio 127.0.0.1:9720 "$1" "$2"
}

for place in $places; do
  parent=$tmpfs
  if [ "$place" = disk ]; then parent=$disk; fi
  # What one size left behind must not burden the next, nor the faster server more than the slower: each begins with
  # an empty store.
  for size in $sizes $([ "$keys" = 0 ] || echo listing); do
    for server in cairn ${MINIO:+minio}; do
      # The first use of a page of memory is dear on virtual machines, and the host may take back what was not used for a while:
      # use the pages once before, for each server, whether it needs them for the tmpfs or for the page cache.
      head -c "$touch" /dev/zero >"$tmpfs/cairn-bench-touch" && rm "$tmpfs/cairn-bench-touch"
      echo "== $server on $place, $size"
      work=$(mktemp -d "$parent/cairn-bench.XXXXXX")
      "run_$server" "$place" "$size"
      cleanup
    done
  done
done
python3 test/bench/table.py "$out" "$places"
echo "rows and logs: $out"
