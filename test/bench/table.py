#!/usr/bin/env python3
"""Turns the rows that bench.sh and cluster.sh kept into the tables of docs/benchmarks.md.

usage: table.py FOLDER "tmpfs disk" [LABELS]
LABELS (default "cairn minio") are the columns; with "minio" among them, so is each other's CPU next to MinIO's.
"""
import glob, json, os, sys

folder, places = sys.argv[1], sys.argv[2].split()
labels = (sys.argv[3] if len(sys.argv) > 3 else "cairn minio").split()
names = {l: "MinIO" if l == "minio" else l for l in labels}
ratios = [l for l in labels if l != "minio"] if "minio" in labels else []
columns = [
    ("{} op/s", lambda x: f"{x['ops']:.0f}"),
    ("{} p50 / p99", lambda x: f"{x['p50']} / {x['p99']}"),
    ("{} server CPU us/op", lambda x: f"{x['cpu_us']:.0f}"),
]
for place in places:
    rows = {}
    for label in labels:
        files = glob.glob(os.path.join(folder, f"{label}-{place}.json")) + glob.glob(os.path.join(folder, f"{label}-{place}-*.json"))
        for path in sorted(files, key=os.path.getmtime):
            for r in json.load(open(path)):
                rows.setdefault((r["size"], r["op"]), {})[label] = r
    head = ["size", "operation"] + [t.format(names[l]) for t, _ in columns for l in labels] + [f"{l} / MinIO" for l in ratios]
    print(f"\nOn {place}:\n")
    print("| " + " | ".join(head) + " |")
    print("| " + " | ".join("---" for _ in head) + " |")
    for (size, op), r in rows.items():
        cells = [size, op] + [f(r[l]) if l in r else "-" for _, f in columns for l in labels]
        cells += [f"{r[l]['cpu_us'] / r['minio']['cpu_us']:.2f}" if l in r and "minio" in r else "-" for l in ratios]
        print("| " + " | ".join(cells) + " |")
