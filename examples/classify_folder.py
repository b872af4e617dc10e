"""Classify the photos of a folder with asyncio, several at a time, and count the classes.

python -m examples.classify_folder SERVER MODEL FOLDER
"""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from pathlib import Path

from edge_agent import Agent, Result


async def main(server: str, model: str, photos: list[Path]) -> None:
    classes: Counter[str] = Counter()
    async with Agent.connect(server, model, topk=1) as agent:
        names = iter(photos)
        async for answer in agent.infer_many(photos, return_errors=True):  # in the order of the photos
            photo = next(names)
            if isinstance(answer, Result):
                classes[answer.top[0].label] += 1
                print(f"{photo.name}: {answer.top[0].label}")
            else:
                print(f"{photo.name}: {answer}", file=sys.stderr)
    print(", ".join(f"{count} x {label}" for label, count in classes.most_common(5)))


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2], sorted(Path(sys.argv[3]).glob("*.jpg"))))
