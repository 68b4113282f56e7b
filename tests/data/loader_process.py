"""A process of its own that loads batches from a position and prints what every row holds, as JSON."""

import hashlib
import json
import sys

import toys


def digests(batch):
    """{global row number: digest of all arrays of that row}."""
    fields = sorted(vars(batch).items())
    return {
        str(number): hashlib.sha256(b"".join(value[b].tobytes() for _, value in fields)).hexdigest()
        for b, number in enumerate(batch.row)
    }


def rows(loader, count):
    found = {}
    for _ in range(count):
        found |= digests(next(loader))
    return found


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    loader = toys.loader(**options["loader"])
    loader.restore(options["state"])
    print(json.dumps({"rows": rows(loader, options["count"]), "state": loader.state()}))
    loader.close()
