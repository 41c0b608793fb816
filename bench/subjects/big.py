"""The handler of warm-10k: 10 KB of JSON in, 10 KB out, many small things as in a page of a table, not one long text."""


def handler(event, context):
    return {"greeting": f"Hello, {event['name']}!", "rows": event["rows"]}
