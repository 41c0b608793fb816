"""The same two handlers in the form that functions-framework calls: a Flask request in, a Flask answer out."""

import json


def direct(request):
    event = request.get_json()
    return {"greeting": f"Hello, {event['name']}!", "visits": event["visits"] + 1}


def proxy(request):
    name = request.args["name"]
    body = json.dumps({"greeting": f"Hello, {name}!", "path": request.path, "agent": request.headers.get("user-agent", "")})
    return body, 200, {"content-type": "application/json", "x-greeted": name}


def big(request):
    event = request.get_json()
    return {"greeting": f"Hello, {event['name']}!", "rows": event["rows"]}
