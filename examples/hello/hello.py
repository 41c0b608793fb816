def handler(event, context):
    name = event.get("queryStringParameters", {}).get("name", "World")
    return f"Hello, {name}!\n"
