"""Exit code 0 where the address answers 200: the images' health check."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

SECONDS = 5.0


def main(address: str) -> int:
    # A proxy of the environment must not be asked about this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(address, timeout=SECONDS) as answer:
            print(answer.read(500).decode())
            return 0
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        print(f"{address}: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
