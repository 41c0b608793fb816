"""The handler that is measured everywhere with a JSON event: ours, and behind every baseline. About 100 bytes in and out."""


def handler(event, context):
    return {"greeting": f"Hello, {event['name']}!", "visits": event["visits"] + 1}
