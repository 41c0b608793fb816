"""The handler that is measured with a whole HTTP event (payload format 2.0): reads a path, a header and a query parameter."""

import json


def handler(event, context):
    name = event["queryStringParameters"]["name"]
    agent = event["headers"].get("user-agent", "")
    body = json.dumps({"greeting": f"Hello, {name}!", "path": event["rawPath"], "agent": agent})
    return {"statusCode": 200, "headers": {"content-type": "application/json", "x-greeted": name}, "body": body}
