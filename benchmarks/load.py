"""A load on a server: `simpleseg bench`, of the same options.

    python benchmarks/load.py --concurrency 1,4,16 --slo-ms 2000 [--quick] [--json]

With ``--json`` the last line printed is one object: ``runs``, with the figures of each load, and
``capacity`` of a ramp, beside the hardware, the versions, the server, the input and the command.
"""

import sys

from simpleseg.cli import main

if __name__ == "__main__":
    sys.argv[:1] = ["simpleseg", "bench"]
    main()
