"""Send a photo to the local HTTP API of a running agent. It needs only the standard library: other programs and
languages can do the same.

edge-agent run --server SERVER --model MODEL
python examples/http_client.py http://127.0.0.1:8471 PHOTO
"""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from pathlib import Path


def main(api: str, photo: str) -> None:
    request = urllib.request.Request(f"{api}/v1/infer", data=Path(photo).read_bytes())
    request.add_header("Content-Type", "image/jpeg")
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = json.load(response)
    except urllib.error.HTTPError as error:  # the body says what is wrong
        raise SystemExit(json.load(error)["error"]["message"]) from None
    best = answer["top"][0]
    print(f"{best['label']}: {100 * best['probability']:.1f} %, {answer['payload_bytes']} bytes sent")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
