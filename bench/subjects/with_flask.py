"""A function that is a Flask app: the event is posted to it. Ours, and behind the bare baseline."""

import os

import flask

app = flask.Flask(__name__)


@app.post("/")
def greet():
    event = flask.request.get_json()
    return {"greeting": f"Hello, {event['name']}!", "visits": event["visits"] + 1, "uid": os.getuid()}


def handler(event, context):
    with app.test_request_context(method="POST", json=event):
        return app.full_dispatch_request().get_json()


try:  # What init leaves to the first request is done before the snapshot, as SnapStart's users do; the bare baseline has no such hook.
    from snapshot_restore_py import register_before_snapshot
except ImportError:
    pass
else:
    register_before_snapshot(handler, {"name": "Ada", "visits": 1}, None)
