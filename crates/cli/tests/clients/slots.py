"""What a server is doing."""

import json
import time
import urllib.request


def wait_until_idle(base):
    """Waits until no answer is in work: soon, where all clients have left."""
    for _ in range(2400):
        with urllib.request.urlopen(f"{base}/v1/slots") as slots:
            if not json.load(slots)[0]["is_processing"]:
                return
        time.sleep(0.05)
    raise AssertionError("the answer runs on")
