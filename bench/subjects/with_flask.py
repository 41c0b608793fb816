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
