"""The handler of mixed: most calls are trivial, some wait for something else (a database, an API) as long as they are told."""

import time


def handler(event, context):
    if event["seconds"]:
        time.sleep(event["seconds"])
    return {"greeting": f"Hello, {event['name']}!"}
