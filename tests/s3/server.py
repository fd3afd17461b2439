"""An S3-speaking server on loopback for the tests: moto's, in this process.

The argument is a bucket that anybody may read, which is made. Prints the server's address; then for each line `prefix<TAB>folder` puts the
folder's files under the prefix and prints `done`. Ends with its standard input.
"""

import logging
import os
import sys

import boto3
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
store = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1")
store.create_bucket(Bucket=sys.argv[1], ACL="public-read")
print(f"{host}:{port}", flush=True)
for line in sys.stdin:
    prefix, folder = line.rstrip("\n").split("\t")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as file:
            store.put_object(Bucket=sys.argv[1], Key=f"{prefix}/{name}", Body=file.read(), ACL="public-read")
    print("done", flush=True)
server.stop()
