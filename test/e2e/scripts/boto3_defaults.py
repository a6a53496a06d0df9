"""Uses an S3 server through boto3 with its default settings, as an application would.

usage: boto3_defaults.py BUCKET (endpoint and keys come from the environment)
Any difference raises; the last line says how many checks passed.
"""
import hashlib, io, os, sys, tempfile, urllib.error, urllib.request
import boto3, botocore, botocore.config
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

bucket = sys.argv[1]
# Old releases of botocore do not read AWS_ENDPOINT_URL themselves.
s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
res = boto3.resource("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
checks = 0


def check(got, want, what):
    global checks
    if got != want:
        raise SystemExit(f"{what}: got {got!r}, want {want!r}")
    checks += 1


def refused(code, status, call, **args):
    try:
        call(**args)
    except ClientError as e:
        got = (e.response["Error"]["Code"], e.response["ResponseMetadata"]["HTTPStatusCode"])
        check(got in [(c, status) for c in code.split("|")], True, f"{call.__name__} {args}: {got}")
        return e
    raise SystemExit(f"{call.__name__} {args} was not refused")


s3.create_bucket(Bucket=bucket)
s3.head_bucket(Bucket=bucket)
check(bucket in [b["Name"] for b in s3.list_buckets()["Buckets"]], True, "list_buckets")
check(s3.get_bucket_location(Bucket=bucket).get("LocationConstraint") in (None, "us-east-1"), True, "location")

body = os.urandom(70_000)
put = s3.put_object(Bucket=bucket, Key="docs/a b+c.txt", Body=body, ContentType="text/plain", CacheControl="max-age=60",
                    ContentDisposition='attachment; filename="x"', ContentLanguage="en", Metadata={"Color": "blue", "n": "1"})
check(put["ETag"], '"' + hashlib.md5(body).hexdigest() + '"', "etag")
got = s3.get_object(Bucket=bucket, Key="docs/a b+c.txt")
check(got["Body"].read(), body, "body")
check((got["ContentType"], got["CacheControl"], got["ContentLanguage"], got["ContentDisposition"]),
      ("text/plain", "max-age=60", "en", 'attachment; filename="x"'), "headers")
check(got["Metadata"], {"color": "blue", "n": "1"}, "user metadata")
check(got["AcceptRanges"], "bytes", "accept-ranges")

for rng, want in [("bytes=0-0", body[:1]), ("bytes=65535-65536", body[65535:65537]), ("bytes=69990-", body[69990:]), ("bytes=-7", body[-7:])]:
    r = s3.get_object(Bucket=bucket, Key="docs/a b+c.txt", Range=rng)
    check((r["Body"].read(), r["ResponseMetadata"]["HTTPStatusCode"]), (want, 206), rng)
refused("InvalidRange", 416, s3.get_object, Bucket=bucket, Key="docs/a b+c.txt", Range="bytes=70000-")
r = s3.get_object(Bucket=bucket, Key="docs/a b+c.txt", ResponseContentType="x/y", ResponseCacheControl="no-store")
check((r["ContentType"], r["CacheControl"]), ("x/y", "no-store"), "response overrides")

refused("PreconditionFailed", 412, s3.get_object, Bucket=bucket, Key="docs/a b+c.txt", IfMatch='"0"')
refused("304|NotModified", 304, s3.get_object, Bucket=bucket, Key="docs/a b+c.txt", IfNoneMatch=put["ETag"])
refused("304|NotModified", 304, s3.get_object, Bucket=bucket, Key="docs/a b+c.txt", IfModifiedSince=got["LastModified"])
refused("404|NoSuchKey", 404, s3.head_object, Bucket=bucket, Key="nothing")
refused("NoSuchKey", 404, s3.get_object, Bucket=bucket, Key="nothing")
refused("NoSuchBucket", 404, s3.list_objects_v2, Bucket=bucket + "-no")

s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "docs/a b+c.txt"})
check(s3.head_object(Bucket=bucket, Key="copy")["Metadata"], {"color": "blue", "n": "1"}, "metadata of a copy")
s3.copy_object(Bucket=bucket, Key="copy2", CopySource={"Bucket": bucket, "Key": "copy"}, MetadataDirective="REPLACE", Metadata={"new": "yes"}, ContentType="a/b")
h = s3.head_object(Bucket=bucket, Key="copy2")
check((h["Metadata"], h["ContentType"], h["ContentLength"]), ({"new": "yes"}, "a/b", len(body)), "replaced metadata")

# Checksums: any algorithm asked for comes back, and is checked on the way down by the client.
for alg in ["CRC32", "SHA1", "SHA256"]:
    p = s3.put_object(Bucket=bucket, Key="sum-" + alg, Body=b"hello", ChecksumAlgorithm=alg)
    h = s3.head_object(Bucket=bucket, Key="sum-" + alg, ChecksumMode="ENABLED")
    check(h["Checksum" + alg], p["Checksum" + alg], alg)
    check(s3.get_object(Bucket=bucket, Key="sum-" + alg, ChecksumMode="ENABLED")["Body"].read(), b"hello", alg)
    s3.delete_object(Bucket=bucket, Key="sum-" + alg)

# Managed transfer: many parts at once.
big = os.urandom(23 * 1024 * 1024 + 5)
with tempfile.NamedTemporaryFile() as f:
    f.write(big)
    f.flush()
    s3.upload_file(f.name, bucket, "big", Config=TransferConfig(multipart_chunksize=5 << 20, multipart_threshold=5 << 20))
    out = io.BytesIO()
    s3.download_fileobj(bucket, "big", out, Config=TransferConfig(multipart_chunksize=5 << 20, multipart_threshold=5 << 20))
check(hashlib.sha256(out.getvalue()).digest(), hashlib.sha256(big).digest(), "multipart there and back")
check(s3.head_object(Bucket=bucket, Key="big")["ETag"].endswith('-5"'), True, "multipart etag")

# Multipart by hand, with a copied part, listed and aborted.
u = s3.create_multipart_upload(Bucket=bucket, Key="mp", Metadata={"k": "v"})["UploadId"]
p1 = s3.upload_part(Bucket=bucket, Key="mp", UploadId=u, PartNumber=1, Body=big[: 5 << 20])
p2 = s3.upload_part_copy(Bucket=bucket, Key="mp", UploadId=u, PartNumber=2, CopySource={"Bucket": bucket, "Key": "big"}, CopySourceRange="bytes=100-1099")
parts = s3.list_parts(Bucket=bucket, Key="mp", UploadId=u)["Parts"]
check([(p["PartNumber"], p["Size"]) for p in parts], [(1, 5 << 20), (2, 1000)], "list_parts")
check([x["UploadId"] for x in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]], [u], "list_multipart_uploads")
s3.complete_multipart_upload(Bucket=bucket, Key="mp", UploadId=u, MultipartUpload={"Parts": [
    {"PartNumber": 1, "ETag": p1["ETag"]}, {"PartNumber": 2, "ETag": p2["CopyPartResult"]["ETag"]}]})
mp = s3.get_object(Bucket=bucket, Key="mp")
check((mp["Body"].read(), mp["Metadata"]), (big[: 5 << 20] + big[100:1100], {"k": "v"}), "multipart by hand")
part = s3.get_object(Bucket=bucket, Key="mp", PartNumber=2)
check((part["Body"].read(), part["PartsCount"]), (big[100:1100], 2), "get by part number")
u = s3.create_multipart_upload(Bucket=bucket, Key="gone")["UploadId"]
s3.abort_multipart_upload(Bucket=bucket, Key="gone", UploadId=u)
refused("NoSuchUpload", 404, s3.list_parts, Bucket=bucket, Key="gone", UploadId=u)

# Listings, with the resource interface too.
for i in range(25):
    s3.put_object(Bucket=bucket, Key=f"list/{i:03}", Body=b"x")
pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix="list/", PaginationConfig={"PageSize": 7}))
check([o["Key"] for p in pages for o in p["Contents"]], [f"list/{i:03}" for i in range(25)], "pages of a listing")
check(len(pages), 4, "number of pages")
old = list(s3.get_paginator("list_objects").paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 2}))
check(sorted(p["Prefix"] for page in old for p in page.get("CommonPrefixes", [])), ["docs/", "list/"], "common prefixes")
check(sum(1 for _ in res.Bucket(bucket).objects.filter(Prefix="list/00")), 10, "resource listing")

# Presigned both ways.
url = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "pre signed"}, ExpiresIn=60)
urllib.request.urlopen(urllib.request.Request(url, data=b"by url", method="PUT", headers={"Content-Type": ""})).read()
url = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "pre signed"}, ExpiresIn=60)
check(urllib.request.urlopen(url).read(), b"by url", "presigned")
for change in [lambda u: u.replace("pre%20signed", "copy"), lambda u: u + "&response-content-type=text/html", lambda u: u.replace("Expires=", "Expires=1")]:
    try:
        urllib.request.urlopen(change(url))
        raise SystemExit(f"a changed presigned URL is taken: {change(url)}")
    except urllib.error.HTTPError as e:
        check(e.code, 403, "changed presigned URL")
v4 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], config=botocore.config.Config(signature_version="s3v4"))
check(urllib.request.urlopen(v4.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "pre signed"})).read(), b"by url", "presigned by version 4")

refused("BucketNotEmpty", 409, s3.delete_bucket, Bucket=bucket)
gone = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": f"list/{i:03}"} for i in range(25)] + [{"Key": "never there"}]})
check(len(gone["Deleted"]), 26, "delete_objects")
check("Errors" in gone, False, "errors of delete_objects")
res.Bucket(bucket).objects.all().delete()
s3.delete_bucket(Bucket=bucket)
refused("404|NoSuchBucket", 404, s3.head_bucket, Bucket=bucket)
print(f"boto3 {boto3.__version__}: {checks} checks passed")
