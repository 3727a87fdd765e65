"""What the image of the flex template starts: `aligngpt-curate curate` with Dataflow's parameters.

Dataflow runs this file with each parameter as `--name=value`, beside flags of its own; the graph is
handed over to the service, and this program ends.
"""

import sys

from pipeline.cli import main
from pipeline.job.template import command_line
from schemas.command_line import print_error
from schemas.errors import ConfigError

if __name__ == "__main__":
    try:
        sys.argv[1:] = command_line(sys.argv[1:])
    except ConfigError as error:
        print_error(str(error))
        sys.exit(2)
    main()
