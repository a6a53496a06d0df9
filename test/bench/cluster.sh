#!/usr/bin/env bash
# Measures six cairn nodes in three zones, with and without TLS between nodes, and, if MINIO names its binary, six MinIO
# nodes, one drive each, in turn and in the same run. Clients use all nodes; CPU is summed over the nodes.
#
#   sudo MINIO=/path/to/minio test/bench/cluster.sh
#
# Each node stands in a network namespace of its own on one bridge (MinIO wants an address for each node), so it
# needs root and iproute2. Needs warp (WARP or on the PATH). Variables:
#   PLACE   a folder for the drives (default /dev/shm: a tmpfs)
#   SIZES   "4KiB 64KiB 1MiB 16MiB"; DUR 10s; CONC 16 clients; IDLE 30 seconds
#   OUT     a folder for the rows as JSON and the servers' logs (default: a new one, printed)
set -euo pipefail
cd "$(dirname "$0")/../.."

place=${PLACE:-/dev/shm}
sizes=${SIZES:-4KiB 64KiB 1MiB 16MiB}
idle=${IDLE:-30}
out=${OUT:-$(mktemp -d)}
export DUR=${DUR:-10s} CONC=${CONC:-16}
mkdir -p "$out"
out=$(cd "$out" && pwd)

if [ -n "${WARP:-}" ]; then PATH=$(dirname "$WARP"):$PATH; fi
command -v warp >/dev/null || { echo "warp is needed: github.com/minio/warp"; exit 1; }
go build -o "$out/cairn" ./cmd/cairn

net=10.231.77
bridge=cairn-bench
forward=(-i "$bridge" -o "$bridge" -j ACCEPT)
work=
pids=()
stop() {
  if [ ${#pids[@]} -gt 0 ]; then
    kill "${pids[@]}" 2>/dev/null || true
    wait "${pids[@]}" 2>/dev/null || true
    pids=()
  fi
  if [ -n "$work" ]; then rm -rf "$work"; fi
  work=
}
cleanup() {
  stop
  for i in 1 2 3 4 5 6; do ip netns del "$bridge-$i" 2>/dev/null || true; done
  ip link del "$bridge" 2>/dev/null || true
  iptables -D FORWARD "${forward[@]}" 2>/dev/null || true
}
trap cleanup EXIT
trap 'exit 1' INT TERM

ip link add "$bridge" type bridge
ip addr add "$net.254/24" dev "$bridge"
ip link set "$bridge" up
# Where Docker runs, what a bridge forwards passes its firewall.
iptables -I FORWARD "${forward[@]}" 2>/dev/null || true
for i in 1 2 3 4 5 6; do
  ip netns add "$bridge-$i"
  ip link add "cb$i" type veth peer name eth0 netns "$bridge-$i"
  ip link set "cb$i" master "$bridge" up
  ip -n "$bridge-$i" addr add "$net.$i/24" dev eth0
  ip -n "$bridge-$i" link set eth0 up
  ip -n "$bridge-$i" link set lo up
done
hosts=$net.1:9000,$net.2:9000,$net.3:9000,$net.4:9000,$net.5:9000,$net.6:9000

ready() { # URL
  for _ in $(seq 600); do
    if curl -sf -o /dev/null "$1"; then return; fi
    sleep 0.2
  done
  echo "no answer from $1, see $out"
  exit 1
}

cpu() { # clock ticks of all nodes
  local sum=0 p f
  for p in "${pids[@]}"; do
    f=$(sed 's/.*) //' "/proc/$p/stat")
    # shellcheck disable=SC2086
    set -- $f
    sum=$((sum + ${12} + ${13}))
  done
  echo "$sum"
}

measure() { # LABEL
  local before after p list
  list=$(IFS=,; echo "${pids[*]}")
  sleep 15
  before=$(cpu)
  sleep "$idle"
  after=$(cpu)
  {
    echo "$1 idle: $(awk -v t=$((after - before)) -v s="$idle" -v hz="$(getconf CLK_TCK)" 'BEGIN { printf "%.2f %% of a core", 100 * t / hz / s / 6 }') a node"
    for p in "${pids[@]}"; do awk '/VmRSS/ { printf "%d MiB ", $2 / 1024 }' "/proc/$p/status"; done
    echo "of memory"
  } | tee "$out/$1-idle.txt"
  # shellcheck disable=SC2086
  JSON=$out/$1-cluster.json test/bench/s3bench "$1" "$hosts" benchkey benchsecret "$list" $sizes
}

run_cairn() { # LABEL ARGUMENT...
  local label=$1 i zone args
  shift
  for i in 1 2 3 4 5 6; do
    zone=$(echo abc | cut -c $(((i + 1) / 2)))
    args=(--data-dir "$work/node$i" --node "n$i" --zone "$zone" --listen "$net.$i:9000" --admin-listen "$net.$i:9001"
      --cluster-listen "$net.$i:9002" --cluster-advertise "$net.$i:9002" "$@")
    if [ "$i" = 1 ]; then
      args+=(--cluster-init)
    else
      args+=(--join-token "$(CAIRN_ROOT_ACCESS_KEY=benchkey CAIRN_ROOT_SECRET_KEY=benchsecret "$out/cairn" cluster token --admin-listen "$net.1:9001")")
    fi
    CAIRN_ROOT_ACCESS_KEY=benchkey CAIRN_ROOT_SECRET_KEY=benchsecret \
      ip netns exec "$bridge-$i" "$out/cairn" server "${args[@]}" >"$out/$label-$i.log" 2>&1 &
    pids+=($!)
    ready "http://$net.$i:9001/health/ready"
  done
  measure "$label"
}

run_minio() {
  local i
  for i in 1 2 3 4 5 6; do
    mkdir -p "$work/node$i"
    MINIO_ROOT_USER=benchkey MINIO_ROOT_PASSWORD=benchsecret MINIO_ROOTDRIVE_THRESHOLD_SIZE=1MB ip netns exec "$bridge-$i" "$MINIO" server \
      --quiet --address "$net.$i:9000" --console-address "$net.$i:9001" \
      "http://$net.1:9000$work/node1" "http://$net.2:9000$work/node2" "http://$net.3:9000$work/node3" \
      "http://$net.4:9000$work/node4" "http://$net.5:9000$work/node5" "http://$net.6:9000$work/node6" >"$out/minio-$i.log" 2>&1 &
    pids+=($!)
  done
  for i in 1 2 3 4 5 6; do ready "http://$net.$i:9000/minio/health/cluster"; done
  measure minio
}

labels="cairn-tls cairn-plain"
for label in $labels ${MINIO:+minio}; do
  echo "== $label"
  work=$(mktemp -d "$place/cairn-bench.XXXXXX")
  case $label in
    cairn-tls) run_cairn "$label" ;;
    cairn-plain) run_cairn "$label" --cluster-plaintext ;;
    minio) run_minio ;;
  esac
  stop
done
cat "$out"/*-idle.txt
python3 test/bench/table.py "$out" cluster "$labels${MINIO:+ minio}"
echo "rows and logs: $out"
