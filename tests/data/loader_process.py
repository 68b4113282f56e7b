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


def made(root, options):
    """Returns a loader of the toys, or of the real datasets under `root`."""
    if root is None:
        return toys.loader(**options)
    import files

    return files.loaded(root, **options)


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    loader = made(options["root"], options["loader"])
    loader.restore(options["state"])
    print(json.dumps({"rows": rows(loader, options["count"]), "state": loader.state()}))
    loader.close()
