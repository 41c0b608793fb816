"""A secret and the network: asks an API what the token in a secret may do, without ever showing the token.

The secret is a file that only this function's instances can read. The network is there because dayfly.toml says egress = "internet".
"""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

SECRET = Path("/run/secrets/API_TOKEN")
SECONDS_MAX = 3


def handler(event, context):
    token = SECRET.read_text().strip()
    address = os.environ["API_URL"]
    request = urllib.request.Request(address, headers={"Authorization": f"Bearer {token}", "User-Agent": "dayfly-example"})
    try:
        with urllib.request.urlopen(request, timeout=SECONDS_MAX) as answer:
            status, said = answer.status, answer.read(200).decode(errors="replace")
    except urllib.error.HTTPError as refused:  # the API answered, and it was a no
        status, said = refused.code, refused.read(200).decode(errors="replace")
    except OSError as unreachable:
        print(f"{address} cannot be reached: {unreachable}")
        status, said = None, str(unreachable)
    return {
        "statusCode": 200,
        "headers": {"content-type": "application/json"},
        "body": json.dumps({"asked": address, "reached": status is not None, "status": status, "said": said, "token_length": len(token)}),
    }
