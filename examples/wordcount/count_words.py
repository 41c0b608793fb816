"""One line of a text in, how often each word is in it out. `dayfly map` calls this with every line."""

import re
from collections import Counter


def handler(event, context):
    return Counter(re.findall(r"[^\W\d_]+", event.lower()))
