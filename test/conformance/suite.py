"""What run.sh needs of Python: the suite's configuration, a pytest plugin, and the count."""

import configparser
import os
import sys
import xml.etree.ElementTree


def configure(path, workers):
    """Writes the suite's configuration for each worker and the server at ENDPOINT, which says itself who the keys belong to."""
    for worker in range(int(workers)):
        write_configuration(f"{path}.gw{worker}", worker)
    write_configuration(path, 0)


def write_configuration(path, worker):
    import boto3

    host, port = os.environ["ENDPOINT"].rsplit(":", 1)

    def account(name):
        keys = {"access_key": os.environ.get(name + "_KEY", f"{name}KEY{worker}"),
                "secret_key": os.environ.get(name + "_SECRET", f"the-secret-of-{name.lower()}-{worker}")}
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1",
                              aws_access_key_id=keys["access_key"], aws_secret_access_key=keys["secret_key"])
        owner = client.list_buckets()["Owner"]
        return {"user_id": owner["ID"], "display_name": owner.get("DisplayName", owner["ID"]),
                "email": name.lower() + "@example.com", **keys}

    main, alt = account("MAIN"), account("ALT")
    conf = configparser.RawConfigParser()
    conf["DEFAULT"] = {"host": host, "port": port, "is_secure": "False", "ssl_verify": "False"}
    conf["fixtures"] = {"bucket prefix": "t-{random}-"}
    conf["s3 main"] = {**main, "api_name": "us-east-1", "storage_classes": "STANDARD_IA, GLACIER"}
    if days := os.environ.get("LC_DEBUG"):
        conf["s3 main"]["lc_debug_interval"] = days
    conf["s3 alt"] = alt
    # There are no tenants and there is no IAM: what needs them fails for what it asks, not for want of a section.
    conf["s3 tenant"] = {**alt, "tenant": "none"}
    conf["iam"], conf["iam root"], conf["iam alt root"], conf["webidentity"] = main, main, alt, {}
    with open(path, "w", encoding="utf-8") as f:
        conf.write(f)


def pytest_configure(config):
    """Each worker has its own accounts. A bucket that one test leaves behind (with locked objects in it) must not fail those that come after it."""
    import s3tests.functional as functional

    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["S3TEST_CONF"] += "." + os.environ["PYTEST_XDIST_WORKER"]
    remove = functional.nuke_prefixed_buckets

    def tolerant(*args, **kwargs):
        try:
            remove(*args, **kwargs)
        except Exception as e:  # whatever it is, it is not what the test is about
            print("left behind:", e)

    functional.nuke_prefixed_buckets = tolerant


def summary(junit, failed):
    """Prints how many functions passed, and writes those that failed with the first line of their error."""
    errors, seen = {}, {}
    for case in xml.etree.ElementTree.parse(junit).iter("testcase"):
        name = (case.get("name") or "").split("[")[0]
        if not name:
            continue
        state = "passed"
        for kind in ("failure", "error", "skipped"):
            found = case.find(kind)
            if found is not None:
                state = "skipped" if kind == "skipped" else "failed"
                if state == "failed":
                    errors.setdefault(name, " ".join((found.get("message") or kind).split())[:300])
        seen.setdefault(name, set()).add(state)
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for states in seen.values():
        counts["failed" if "failed" in states else "passed" if "passed" in states else "skipped"] += 1
    with open(failed, "w", encoding="utf-8") as f:
        for name in sorted(errors):
            f.write(f"{name}\t{errors[name]}\n")
    print(", ".join(f"{n} {state}" for state, n in counts.items()), "of", len(seen), "functions")


def main(args):
    command, *args = args
    if command == "test":
        import pytest

        return pytest.main(args)
    {"configure": configure, "summary": summary}[command](*args)
    return 0
